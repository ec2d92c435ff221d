"""Loads a weights file into a model; reports matched, missing, unexpected and mismatched tensors.

A file that matches too little is refused. Loading without such a count hides a renamed layer until the results are bad.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_N_EXAMPLES = 5
# Counts batches for a momentum that is not used; frozen norms and older files lack it.
_COUNTER = "num_batches_tracked"


class WeightsMismatchError(ValueError):
    """A weights file does not fit the model it was given to."""


class Part(NamedTuple):
    """Tensors of a model that are of use together only; ``settings`` name what decides their shapes."""

    name: str
    tensors: Collection[str]
    settings: str


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The names of a model's tensors by what a file did for them.

    ``missing`` were wanted and stay as they were; ``unexpected`` are in the file only; ``shape_mismatch`` are in both,
    as ``name: shape in the file, expected shape``; ``adapted`` were resized to fit, as ``name: from -> to``;
    ``ignored`` belong to parts that are left out on purpose (decoders, classifiers). ``share`` is the smaller of the
    share of wanted tensors and of wanted values that matched, so that neither a few large nor many small ones can hide.
    """

    file: Path
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shape_mismatch: tuple[str, ...]
    adapted: tuple[str, ...]
    ignored: tuple[str, ...]
    share: float

    def summary(self) -> str:
        """One line with the counts, and examples of what did not fit."""
        parts = [f"{self.file}: {self.share:.1%} of the wanted parameters, {len(self.matched)} tensors matched"]
        for name in ("missing", "unexpected", "shape_mismatch", "adapted", "ignored"):
            names = getattr(self, name)
            if names:
                parts.append(f"{len(names)} {name} ({examples(names)})")
        return "; ".join(parts)


def examples(names: Collection[str]) -> str:
    """The first names and an ellipsis for the rest."""
    shown = ", ".join(list(names)[:_N_EXAMPLES])
    return shown + (", ..." if len(names) > _N_EXAMPLES else "")


def load_matching_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    file: Path,
    min_matched: float,
    wanted: Collection[str] | None = None,
    parts: Sequence[Part] = (),
    adapted: Collection[str] = (),
    ignored: Collection[str] = (),
) -> LoadReport:
    """Copies tensors of equal name and shape from ``state`` into ``model``, or refuses without a change.

    ``wanted`` are the names that count for the share; all of the model's when None. Each of the ``parts`` has to match
    as well as the whole: no head hides behind a large encoder.

    Raises:
        WeightsMismatchError: less than ``min_matched`` of the wanted parameters, or of those of a part, match, or a
            matching tensor holds values that are not finite.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.endswith(_COUNTER)}
    given = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    names = set(own if wanted is None else wanted)
    matched = [name for name, value in given.items() if name in own and own[name].shape == value.shape]
    shape_mismatch = [
        f"{name}: {tuple(value.shape)}, expected {tuple(own[name].shape)}"
        for name, value in given.items()
        if name in own and own[name].shape != value.shape
    ]
    report = LoadReport(
        file=file,
        matched=tuple(sorted(matched)),
        missing=tuple(sorted(names.difference(given))),
        unexpected=tuple(sorted(set(given).difference(own))),
        shape_mismatch=tuple(sorted(shape_mismatch)),
        adapted=tuple(sorted(adapted)),
        ignored=tuple(sorted(ignored)),
        share=_share(names, matched, own),
    )
    for part in parts:
        _check_part(part, report, _share(part.tensors, matched, own), min_matched)
    if report.share < min_matched:
        raise WeightsMismatchError(
            f"{report.summary()}; expected at least {min_matched:.1%}: take the file of this network, or lower "
            "min_matched, where it can be set, if you know what is missing"
        )
    broken = [name for name in matched if given[name].is_floating_point() and not torch.isfinite(given[name]).all()]
    if broken:
        raise WeightsMismatchError(
            f"{file}: expected finite values, found NaN or infinity in {examples(broken)}; the training that wrote the "
            "file had diverged, take an earlier checkpoint"
        )
    model.load_state_dict({name: given[name] for name in matched}, strict=False)
    return report


def _check_part(part: Part, report: LoadReport, share: float, min_matched: float) -> None:
    """Refuse a file that has too little of one part, however much it has of the others."""
    if share >= min_matched:
        return
    misfits = [line for line in (*report.shape_mismatch, *report.missing) if line.partition(":")[0] in part.tensors]
    raise WeightsMismatchError(
        f"{report.summary()}; expected at least {min_matched:.1%} of the {part.name}, found {share:.1%} "
        f"({examples(misfits)}): set {part.settings} as the file was trained with, take the file of this network, load "
        "its backbone alone (initialise.mode: backbone_only), or lower min_matched if the rest may start from random "
        "weights"
    )


def _share(names: Collection[str], matched: Collection[str], own: Mapping[str, Tensor]) -> float:
    """The smaller of the shares of tensors and of values that matched; 1 where none are wanted."""
    found = set(names).intersection(matched)
    n_values = sum(own[name].numel() for name in names)
    if not n_values:
        return 1.0
    return min(sum(own[name].numel() for name in found) / n_values, len(found) / len(names))
