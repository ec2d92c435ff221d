"""Detections of images in one frame, as every export takes them: names, sizes, boxes, scores, classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key

ExportFrame = Literal["source", "global"]


@dataclass(frozen=True, slots=True)
class PredictedImage:
    """Detections of one image, best first.

    ``file_name`` is relative, POSIX; ``size`` is width and height, px; ``boxes`` float64 (N, 4) as x0 y0 x1 y1 in px
    (pixel edges); ``scores`` float64 (N,); ``labels`` category ids; ``polygons`` float64 (N, 4, 2) in px of oriented
    boxes, or None.
    """

    image_id: str
    file_name: str
    size: tuple[int, int]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    polygons: NDArray[np.float64] | None

    @property
    def stem(self) -> str:
        """The file name without its suffix."""
        return PurePosixPath(self.file_name).with_suffix("").as_posix()


def read_predicted_images(
    store: ArtefactStore, detector: str, *, frame: ExportFrame, min_score: float = 0.0
) -> list[PredictedImage]:
    """The detections of every prediction file of a detector lane, sorted by image id.

    Args:
        store: where all artefacts are.
        detector: the lane's name.
        frame: ``source``: the photographs as they were landed, named by their path in the lane's folder; ``global``:
            the square global images, named by their files.
        min_score: detections below are left out.

    Raises:
        FileNotFoundError: there are no predictions; names what to materialize.
        ValueError: a file is not of this platform, or an image is in no manifest; two images share a name.
    """
    files = sorted(store.prediction_file(detector, "any").parent.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{store.prediction_file(detector, 'any').parent}: found no predictions; materialize {detector}/predictions"
        )
    names = dict(_landed_names(store)) if frame == "source" else {}
    images = sorted((_read(store, path, frame, names, min_score) for path in files), key=lambda image: image.image_id)
    _check_stems(images)
    return images


def _read(
    store: ArtefactStore, path: Path, frame: ExportFrame, names: dict[str, str], min_score: float
) -> PredictedImage:
    content = read_json(path)
    missing = [name for name in ("image_id", "predictions", "source_size", "global_size") if name not in content]
    if missing:
        raise ValueError(
            f"{path}: expected a prediction file of this platform, found none of {', '.join(missing)}; predict again"
        )
    image_id = str(content["image_id"])
    width, height = content[f"{frame}_size"]
    if frame == "global":
        name = store.global_image(artefact_key(image_id), width).name
    elif image_id in names:
        name = names[image_id]
    else:
        raise ValueError(f"{path}: {image_id}: found in no manifest; delete the file, or materialize the manifest")
    rows = [entry for entry in content["predictions"] if np.float32(entry["score"]) >= np.float32(min_score)]
    polygons = None
    if content.get("oriented", False):
        polygons = np.array([entry["polygon_source"] for entry in rows], np.float64).reshape(-1, 4, 2)
        if frame == "global":
            to_global = content["source_to_global"]
            polygons = polygons * to_global["scale"] + np.array(to_global["offset"], np.float64)
    return PredictedImage(
        image_id=image_id,
        file_name=name,
        size=(int(width), int(height)),
        boxes=np.array([entry["box_source" if frame == "source" else "box"] for entry in rows], np.float64).reshape(
            -1, 4
        ),
        scores=np.array([entry["score"] for entry in rows], np.float64),
        labels=np.array([entry["label"] for entry in rows], np.int64),
        polygons=polygons,
    )


def _landed_names(store: ArtefactStore) -> Iterator[tuple[str, str]]:
    """Image ids and paths inside their lane's landing folder, of all lanes."""
    for lane in store.lanes_with_manifests():
        manifest = read_manifest(store, lane)
        column = "relative_path" if "relative_path" in manifest.columns else "filepath"
        for image_id, name, path in manifest.select("image_id", column, "filepath").iter_rows():
            yield image_id, name or path


def _check_stems(images: Sequence[PredictedImage]) -> None:
    seen: dict[str, PredictedImage] = {}
    for image in images:
        other = seen.setdefault(image.stem, image)
        if other is not image:
            raise ValueError(
                f"{image.image_id}: {image.file_name} and {other.file_name} of {other.image_id} differ in their suffix "
                "only, and would have one file of labels; export the frame global"
            )
