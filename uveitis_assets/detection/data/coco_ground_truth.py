"""One COCO label file as arrays: the ground truth of each of its images, checked against their sizes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.storage.files import read_json

# Boxes this far outside their image count as inside: float64 noise of the projection and of width = x1 - x0.
_NOISE_PX = 1e-3
# Thinner boxes are left out: scaled to the network's input in float32 they lose their area, which stops a training.
# Half of what the platform's own labels have at least.
_SMALLEST_SIDE_PX = 1 / 128

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A COCO file's images in their order with the ground truth of each, and its categories.

    ``n_crowds`` counts annotations of groups of objects (``iscrowd``), which are among the ground truth too.
    """

    path: Path
    images: list[dict[str, Any]]
    truths: list[GroundTruth]
    categories: dict[int, str]
    n_crowds: int = 0

    @classmethod
    def read(cls, path: Path, partition: str) -> LabelFile:
        """Read a file that ``partition`` makes.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a part is missing, or an annotation is not valid.
        """
        try:
            content = read_json(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: expected a COCO file, found none; materialize {partition}") from error
        missing = [name for name in ("images", "annotations", "categories") if name not in content]
        if missing:
            raise ValueError(
                f"{path}: expected the lists images, annotations and categories, found no {' and no '.join(missing)}; "
                f"materialize {partition} again"
            )
        try:
            categories = {int(category["id"]): str(category["name"]) for category in content["categories"]}
            truths = _ground_truths(path, content["images"], content["annotations"], categories)
        except KeyError as error:
            raise ValueError(f"{path}: an entry has no {error}; materialize {partition} again") from error
        n_crowds = sum(bool(entry.get("iscrowd")) for entry in content["annotations"])
        return cls(path, content["images"], truths, categories, n_crowds)


def _ground_truths(
    path: Path, images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], categories: Mapping[int, str]
) -> list[GroundTruth]:
    """Ground truth of every image: all annotations as a few arrays, then cut by image."""
    position = {image["id"]: number for number, image in enumerate(images)}
    if len(position) != len(images):
        raise ValueError(f"{path}: expected every image id once, found {len(images) - len(position)} repeated")
    if min(categories, default=1) < 1:
        raise ValueError(f"{path}: expected category ids from 1 (0 is background), found {min(categories)}")
    of_image = np.array([position.get(entry["image_id"], -1) for entry in annotations], np.int64)
    _refuse(path, annotations, of_image < 0, "names an image that the file does not list", "image_id")
    labels = np.array([entry["category_id"] for entry in annotations], np.int64)
    unknown = ~np.isin(labels, np.array(sorted(categories), np.int64))
    _refuse(
        path, annotations, unknown, f"expected a category of the file ({named_categories(categories)})", "category_id"
    )

    sizes = np.array([(image["width"], image["height"]) for image in images], np.float64).reshape(-1, 2)[of_image]
    exact = _boxes(path, annotations, sizes)
    corners_px = _corners(path, annotations, sizes)
    scores = np.array([entry["score"] if entry.get("pseudo") else 1.0 for entry in annotations], np.float32)
    wrong_score = np.logical_not((scores >= 0) & (scores <= 1))
    _refuse(path, annotations, wrong_score, "expected a score from 0 to 1", "score")

    has_area = (exact[:, 2:] - exact[:, :2] >= _SMALLEST_SIDE_PX).all(axis=1)
    if not has_area.all():
        first = annotations[int(np.flatnonzero(~has_area)[0])]
        image = images[position[first["image_id"]]]
        _logger.warning(
            "%s: left out %d annotations whose box is without area; first: annotation %s of image %s%s, bbox %s",
            path,
            int((~has_area).sum()),
            first.get("id"),
            image.get("image_id", image["id"]),
            f"/{image['tile_id']}" if "tile_id" in image else "",
            first["bbox"],
        )
    kept = np.flatnonzero(has_area)
    kept = kept[np.argsort(of_image[kept], kind="stable")]
    starts = np.searchsorted(of_image[kept], np.arange(len(images) + 1))
    rows_of = [kept[start:end] for start, end in pairwise(starts)]
    return [GroundTruth(exact[rows], labels[rows], corners_px[rows], scores[rows]) for rows in rows_of]


def _boxes(path: Path, annotations: Sequence[Mapping[str, Any]], sizes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Boxes (N, 4) as x0 y0 x1 y1, clipped to the sizes (N, 2) of their images."""
    four = np.array([len(entry["bbox"]) == 4 for entry in annotations], bool)
    _refuse(path, annotations, ~four, "expected x, y, width and height", "bbox")
    boxes = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    with np.errstate(invalid="ignore"):
        good = (boxes[:, :2] >= -_NOISE_PX) & (boxes[:, 2:] <= sizes + _NOISE_PX) & (boxes[:, 2:] >= boxes[:, :2])
    _refuse(path, annotations, np.asarray(~good.all(axis=1)), "box outside its image or of negative size", "bbox")
    upper = np.concatenate([sizes, sizes], axis=1)
    return np.clip(boxes, 0.0, upper).astype(np.float32)


def _corners(path: Path, annotations: Sequence[Mapping[str, Any]], sizes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Corners (N, 4, 2) of oriented boxes in px, NaN where an annotation has none.

    ``sizes`` as for ``_boxes``.
    """
    corners = np.full((len(annotations), 4, 2), np.nan)
    rows = [row for row, entry in enumerate(annotations) if entry.get("obb") is not None]
    if rows:
        eight = np.ones(len(annotations), bool)
        eight[rows] = [len(annotations[row]["obb"]) == 8 for row in rows]
        _refuse(path, annotations, ~eight, "expected 8 numbers or null", "obb")
        shares = np.array([annotations[row]["obb"] for row in rows], np.float64).reshape(-1, 4, 2)
        corners[rows] = shares * sizes[rows, None]
    return corners.astype(np.float32)


def _refuse(
    path: Path, annotations: Sequence[Mapping[str, Any]], wrong: NDArray[Any], problem: str, field: str
) -> None:
    """Raise with the first wrong annotation and the number of them."""
    if not wrong.any():
        return
    entry = annotations[int(wrong.argmax())]
    raise ValueError(
        f"{path}: annotation {entry.get('id')} of image {entry.get('image_id')}: {problem}, found {field} "
        f"{entry.get(field)}; {int(wrong.sum())} of {len(annotations)} annotations are wrong; write the file again"
    )


def named_categories(categories: Mapping[int, str]) -> str:
    """Ids and names of categories for messages."""
    return ", ".join(f"{key} {name}" for key, name in sorted(categories.items()))
