"""Official SAM 2 checkpoints: reading them without running code, and how their tensors fit a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uveitis_assets.fundus.roi.sam2_model import Sam2UnavailableError
from uveitis_assets.messages import enumeration

if TYPE_CHECKING:
    import torch

N_KEYS_NAMED = 5


@dataclass(frozen=True, slots=True)
class ShapeMismatch:
    """A tensor whose shape in the checkpoint is not the model's."""

    key: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """How a checkpoint's tensors fit the model: key names, sorted.

    ``matched`` keys agree in name and shape; ``missing`` ones the model needs and the file lacks; ``unexpected`` ones
    the model has no place for.
    """

    checkpoint: Path
    model_cfg: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[ShapeMismatch, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model and of the file found its partner."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """Counts and the first names of what does not fit, on one line."""
        mismatches = [f"{item.key} (expected {item.expected}, found {item.found})" for item in self.mismatched]
        parts = [
            f"{len(self.matched)} matched",
            _counted("missing", self.missing),
            _counted("unexpected", self.unexpected),
            _counted("of another shape", mismatches),
        ]
        return ", ".join(parts)


def _counted(what: str, names: Sequence[str]) -> str:
    if not names:
        return f"0 {what}"
    return f"{len(names)} {what} ({enumeration(names, N_KEYS_NAMED)})"


def read_sam2_checkpoint(checkpoint: Path) -> dict[str, torch.Tensor]:
    """State dict of an official checkpoint, on the CPU."""
    import torch

    if not checkpoint.is_file():
        found = "a folder" if checkpoint.is_dir() else "no file"
        raise Sam2UnavailableError(
            f"{checkpoint}: expected an official SAM 2 checkpoint, found {found}; download it (for the default "
            "configuration sam2.1_hiera_base_plus.pt) to this place or set roi.sam2.checkpoint"
        )
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile pickle can raise anything
        raise Sam2UnavailableError(
            f"{checkpoint}: expected a readable checkpoint of tensors only, found {checkpoint.stat().st_size} bytes "
            f"that torch refuses ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); the "
            "file is damaged, not a checkpoint, or holds code: download it again"
        ) from error
    if not isinstance(content, Mapping):
        raise Sam2UnavailableError(_other_form(checkpoint, type(content).__name__))
    state = content.get("model")
    if not isinstance(state, Mapping):
        keys = sorted(map(str, content))
        raise Sam2UnavailableError(_other_form(checkpoint, f"root keys [{enumeration(keys, N_KEYS_NAMED)}]"))
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            raise Sam2UnavailableError(_other_form(checkpoint, f"{type(value).__name__} at model[{key!r}]"))
    return dict(state)


def _other_form(checkpoint: Path, found: str) -> str:
    return (
        f"{checkpoint}: expected the official form {{'model': {{name: tensor}}}}, found {found}; take an official "
        "SAM 2 checkpoint or store the state dict under the root key `model`"
    )


def compare_checkpoint(
    checkpoint: Path,
    model_cfg: str,
    expected: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
) -> CheckpointReport:
    """Compare names and shapes of the tensors that a model expects with those found in a checkpoint."""
    shared = sorted(expected.keys() & found.keys())
    return CheckpointReport(
        checkpoint=checkpoint,
        model_cfg=model_cfg,
        matched=tuple(key for key in shared if expected[key].shape == found[key].shape),
        missing=tuple(sorted(expected.keys() - found.keys())),
        unexpected=tuple(sorted(found.keys() - expected.keys())),
        mismatched=tuple(
            ShapeMismatch(key, tuple(expected[key].shape), tuple(found[key].shape))
            for key in shared
            if expected[key].shape != found[key].shape
        ),
    )
