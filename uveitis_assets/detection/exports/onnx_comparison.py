"""Compares the detections of an ONNX file with those of its PyTorch detector, tile by tile.

Both compute in float32 and sum in another order, so scores and coordinates differ in the last digits, and where a
detection hangs on a comparison of nearly equal numbers (two proposals of nearly the same score, an overlap at the limit
of a suppression, a score at the threshold) one may find what the other does not. Such a case is no error of the file,
and is recognised by PyTorch's own answers: to a tile whose pixels are changed by 1/400 grey level it gives the
detection in one case and not in the other. All else has to be equal, within ``BOX_TOLERANCE_PX`` and
``SCORE_TOLERANCE``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uveitis_assets.detection.inference.detections import Detections

BOX_TOLERANCE_PX = 0.05
SCORE_TOLERANCE = 1e-4
# Largest share of all detections that may hang on rounding: more would hide a wrong file.
MOST_UNDECIDED = 0.05
_NOISE = 1e-5
_N_NOISY_PASSES = 6

Run = Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.generic]]]


class ExportDiffersError(ValueError):
    """The exported detector finds something else; the message names tile and difference."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How equal two detectors are over all tiles.

    ``largest_px`` and ``largest_score`` are over the detections that both give; ``n_undecided`` counts those that only
    one gives because rounding decides.
    """

    n_tiles: int
    n_detections: int
    n_undecided: int
    largest_px: float
    largest_score: float


def compare_detectors(
    model: nn.Module, run: Run, tiles: Mapping[str, NDArray[np.float32]], *, score_threshold: float, limit: int
) -> Comparison:
    """Compare a PyTorch detector with an exported one on tiles.

    Args:
        model: the detector in evaluation mode, on the CPU.
        run: the exported one: float32 (1, 3, S, S), RGB 0..1, to its outputs by name.
        tiles: such inputs by the names that messages give them.
        score_threshold: scores below are dropped inside the network.
        limit: most detections of a tile.

    Raises:
        ExportDiffersError: they differ by more than the tolerances, or neither finds anything in any tile.
    """
    n_detections, largest = 0, np.zeros(2)
    undecided: dict[str, int] = {}
    for name, tile in tiles.items():
        expected, found = _from_torch(model, tile), _as_detections(run(tile))
        pairs, lone_expected, lone_found = _matched(expected, found)
        n_detections += len(expected)
        px, scores = _distances(expected, found)
        for row, column in pairs:
            largest = np.maximum(largest, (px[row, column], scores[row, column]))
        if not lone_expected and not lone_found:
            continue
        floors = [score_threshold, *(float(one.scores.min()) for one in (expected, found) if len(one) >= limit)]
        lone = [(expected, row, True) for row in lone_expected] + [(found, row, False) for row in lone_found]
        lone = [item for item in lone if item[0].scores[item[1]] > max(floors) + SCORE_TOLERANCE]
        undecided[name] = len(lone_expected) + len(lone_found)
        noisy = [_from_torch(model, _noisy(tile, seed)) for seed in range(_N_NOISY_PASSES)] if lone else []
        for one, row, is_expected in lone:
            given = [row not in _matched(one, other)[1] for other in noisy]
            if all(given) if is_expected else not any(given):
                raise ExportDiffersError(_difference(name, one, row, found if is_expected else expected, is_expected))
    if not n_detections:
        raise ExportDiffersError(
            f"expected detections to compare in some of {len(tiles)} tiles, found none in any of them; name tiles with "
            "lesions (--tiles)"
        )
    total = sum(undecided.values())
    if total > max(1, MOST_UNDECIDED * n_detections):
        worst = max(undecided, key=lambda name: undecided[name])
        raise ExportDiffersError(
            f"{total} of {n_detections} detections are given by one detector only, {undecided[worst]} of them in "
            f"{worst}; expected at most {MOST_UNDECIDED:.0%} that hang on rounding"
        )
    return Comparison(len(tiles), n_detections, total, float(largest[0]), float(largest[1]))


def _from_torch(model: nn.Module, tile: NDArray[np.float32]) -> Detections:
    with torch.inference_mode():
        (found,) = model([torch.from_numpy(tile[0])])
    return _as_detections({name: values.numpy() for name, values in found.items()})


def _as_detections(found: Mapping[str, NDArray[np.generic]]) -> Detections:
    corners = found.get("corners")
    return Detections(
        boxes=np.asarray(found["boxes"], np.float32),
        scores=np.asarray(found["scores"], np.float32),
        labels=np.asarray(found["labels"], np.int64),
        corners=None if corners is None else np.asarray(corners, np.float32),
    )


def _noisy(tile: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).uniform(-_NOISE, _NOISE, tile.shape)
    return np.asarray(tile + noise, np.float32)


def _matched(one: Detections, other: Detections) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Pairs of rows that are equal within the tolerances, the nearest first; then the rows left of each."""
    px, scores = _distances(one, other)
    equal = (px <= BOX_TOLERANCE_PX) & (scores <= SCORE_TOLERANCE) & (one.labels[:, None] == other.labels[None])
    rows, columns = np.nonzero(equal)
    pairs: list[tuple[int, int]] = []
    left, right = set(range(len(one))), set(range(len(other)))
    for index in np.argsort(px[rows, columns], kind="stable"):
        row, column = int(rows[index]), int(columns[index])
        if row in left and column in right:
            pairs.append((row, column))
            left.remove(row)
            right.remove(column)
    return pairs, sorted(left), sorted(right)


def _distances(one: Detections, other: Detections) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest difference of coordinates, px, and that of the scores, of all rows (N, M)."""
    px = np.abs(one.boxes[:, None].astype(np.float64) - other.boxes[None]).max(axis=2)
    if one.corners is not None and other.corners is not None:
        # The same rectangle may begin at another corner.
        turned = [np.roll(other.corners, turn, axis=1) for turn in range(4)]
        of_turns = [
            np.abs(one.corners[:, None].astype(np.float64) - corners[None]).max(axis=(2, 3)) for corners in turned
        ]
        px = np.maximum(px, np.min(of_turns, axis=0))
    return px, np.abs(one.scores[:, None].astype(np.float64) - other.scores[None])


def _difference(name: str, one: Detections, row: int, other: Detections, is_expected: bool) -> str:
    giver, lacking = ("PyTorch", "ONNX") if is_expected else ("ONNX", "PyTorch")
    box = ", ".join(f"{value:.2f}" for value in one.boxes[row])
    px, scores = _distances(one.select(np.array([row])), other.select(other.labels == one.labels[row]))
    nearest = int(px[0].argmin()) if px.size else None
    away = (
        "no detection of this class"
        if nearest is None
        else f"the nearest of this class {px[0, nearest]:.3g} px and {scores[0, nearest]:.3g} in the score away"
    )
    return (
        f"{name}: {giver} gives class {one.labels[row]} with score {one.scores[row]:.4f} at [{box}], {lacking} has "
        f"{away}; expected at most {BOX_TOLERANCE_PX} px and {SCORE_TOLERANCE}"
    )
