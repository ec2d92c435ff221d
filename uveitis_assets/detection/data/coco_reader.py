"""Reads one lane's labelled images of one fold and split from its COCO files, as training and evaluation need them.

The global and the tile COCO file are joined with the frames (crop_meta, tiles_meta), the manifest (patient) and the
tiles' index (what the pixels were made from). Files of the earlier scripts have the same keys and are read too. Only
what the COCO files list enters; it decides no label policy and opens no image, except where no index says what the
tiles hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl
from blake3 import blake3
from numpy.typing import NDArray

from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledSplit, LabelledTile
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.landing.pseudonyms import patient_key, pseudonym
from uveitis_assets.stages.index import read_index_table
from uveitis_assets.storage.files import PathEscapesRootError, read_json, resolve_inside
from uveitis_assets.storage.store import ArtefactStore, artefact_key

# Boxes this far outside their image count as inside: float64 noise of the projection and of width = x1 - x0.
_NOISE_PX = 1e-3
_FINGERPRINT_DIGITS = 16

_logger = logging.getLogger(__name__)


def read_labelled_split(
    store: ArtefactStore, lane: str, *, fold: int, split: str, pseudo_labels_of: str | None = None
) -> LabelledSplit:
    """Read all labelled images of one lane, fold and split, and their tiles, in the order of the COCO files.

    Boxes are in px of the global image and of the tile (pixel edges, x0 y0 x1 y1), whichever frame the tiles were
    cut from. Annotations whose box has no area in float32 are left out with a warning in the log. Pseudo-labels
    (``"pseudo": true``) keep their score, all others have score 1.

    Args:
        store: where labels, metadata, manifest and index live.
        lane: dataset lane, the first part of the COCO files' names.
        fold: 0 reads labels_coco/, others labels_coco/fold<k>/.
        split: train, val or test.
        pseudo_labels_of: detector whose expanded training labels are read instead; only with ``train``.

    Raises:
        FileNotFoundError: a file is missing; the message says which asset makes it.
        PathEscapesRootError: a tile's file name leads out of the store.
        ValueError: the files contradict each other, or a box lies outside its image.
    """
    if pseudo_labels_of is None:
        partition = f"partition `fold{fold}|{split}` of {lane}/coco_labels"
        paths = [store.coco_file(lane, split, fold, tiles=tiles) for tiles in (False, True)]
    elif split == "train":
        partition = f"partition `fold{fold}` of {pseudo_labels_of}/pseudo_labels"
        paths = [store.pseudo_coco_file(pseudo_labels_of, lane, fold, tiles=tiles) for tiles in (False, True)]
    else:
        raise ValueError(f"split: expected train with pseudo-labels, found {split}: nothing is judged by them")
    globals_file, tiles_file = (_CocoFile.read(path, partition) for path in paths)
    if globals_file.categories != tiles_file.categories:
        raise ValueError(
            f"{tiles_file.path}: expected the categories of {globals_file.path.name} "
            f"({_named(globals_file.categories)}), found {_named(tiles_file.categories)}; materialize {partition} again"
        )
    tile_numbers = _tiles_by_image(tiles_file, globals_file, partition)
    image_ids = [str(entry["image_id"]) for entry in globals_file.images]
    patients = _patients(store, lane, image_ids)
    made_from = _tiles_made_from(store, lane)
    inside = _PathsInside(store.root)
    images = []
    for number, (image_id, entry) in enumerate(zip(image_ids, globals_file.images, strict=True)):
        key = artefact_key(image_id)
        if "/" in key or "\0" in key:
            raise PathEscapesRootError(f"{globals_file.path}: {image_id!r}: expected an image id without slashes")
        frames = _frames(store, lane, key)
        numbers = tile_numbers[image_id]
        listed = [tiles_file.images[at] for at in numbers]
        try:
            _check_frames(frames, entry, listed)
        except ValueError as error:
            raise ValueError(
                f"{globals_file.path}: {image_id}: {error}; the labels are not of these tiles: materialize "
                f"{partition} again"
            ) from error
        tiles = tuple(
            LabelledTile(
                tile_id=tile.tile_id,
                file=inside.resolve(str(tiles_file.images[at]["file_name"]), tiles_file.path),
                width=tile.width,
                height=tile.height,
                truth=tiles_file.truths[at],
            )
            for tile, at in zip(frames.tiles, numbers, strict=True)
        )
        images.append(
            LabelledImage(
                image_id=image_id,
                key=key,
                patient=patients[image_id],
                frames=frames,
                truth=globals_file.truths[number],
                tiles=tiles,
                tiles_fingerprint=_tiles_fingerprint(lane, frames, tiles, made_from.get(image_id)),
            )
        )
    categories = globals_file.categories
    return LabelledSplit(lane, fold, split, tuple(images), categories, labelled_fingerprint(images, categories))


def labelled_fingerprint(images: Iterable[LabelledImage], categories: Mapping[int, str]) -> str:
    """16 hex digits of what training sees of some images: labels, categories, frames and the tiles' content."""
    digest = blake3(repr(sorted(categories.items())).encode())
    for image in images:
        # The patient stays out: pseudonyms differ between installations, pixels and labels do not.
        digest.update(repr((image.image_id, image.tiles_fingerprint, image.frames)).encode())
        for truth in (image.truth, *(tile.truth for tile in image.tiles)):
            digest.update(len(truth).to_bytes(8, "little"))
            for array in (truth.boxes, truth.labels, truth.corners, truth.scores):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


@dataclass(frozen=True, slots=True)
class _CocoFile:
    """A COCO file's images in their order with the ground truth of each, and its categories."""

    path: Path
    images: list[dict[str, Any]]
    truths: list[GroundTruth]
    categories: dict[int, str]

    @classmethod
    def read(cls, path: Path, partition: str) -> _CocoFile:
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
        return cls(path, content["images"], truths, categories)


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
    _refuse(path, annotations, unknown, f"expected a category of the file ({_named(categories)})", "category_id")

    sizes = np.array([(image["width"], image["height"]) for image in images], np.float64).reshape(-1, 2)[of_image]
    four = np.array([len(entry["bbox"]) == 4 for entry in annotations], bool)
    _refuse(path, annotations, ~four, "expected x, y, width and height", "bbox")
    boxes = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    with np.errstate(invalid="ignore"):
        good = (boxes[:, :2] >= -_NOISE_PX) & (boxes[:, 2:] <= sizes + _NOISE_PX) & (boxes[:, 2:] >= boxes[:, :2])
    _refuse(path, annotations, np.asarray(~good.all(axis=1)), "box outside its image or of negative size", "bbox")
    upper = np.concatenate([sizes, sizes], axis=1)
    exact = np.clip(boxes, 0.0, upper).astype(np.float32)

    corners = np.full((len(annotations), 4, 2), np.nan)
    oriented = np.array([entry.get("obb") is not None for entry in annotations], bool)
    if oriented.any():
        rows: list[int] = np.flatnonzero(oriented).tolist()
        eight = np.ones(len(annotations), bool)
        eight[rows] = [len(annotations[row]["obb"]) == 8 for row in rows]
        _refuse(path, annotations, ~eight, "expected 8 numbers or null", "obb")
        shares = np.array([annotations[row]["obb"] for row in rows], np.float64).reshape(-1, 4, 2)
        corners[rows] = shares * sizes[rows, None]
    scores = np.array([entry["score"] if entry.get("pseudo") else 1.0 for entry in annotations], np.float32)
    wrong_score = np.logical_not((scores >= 0) & (scores <= 1))
    _refuse(path, annotations, wrong_score, "expected a score from 0 to 1", "score")

    has_area = (exact[:, 2:] > exact[:, :2]).all(axis=1)
    if not has_area.all():
        first = int(np.flatnonzero(~has_area)[0])
        _logger.warning(
            "%s: left out %d annotations whose box has no area; first: annotation %s",
            path,
            int((~has_area).sum()),
            annotations[first].get("id"),
        )
    kept = np.flatnonzero(has_area)
    kept = kept[np.argsort(of_image[kept], kind="stable")]
    starts = np.searchsorted(of_image[kept], np.arange(len(images) + 1))
    corners_px = corners.astype(np.float32)
    rows_of = [kept[start:end] for start, end in pairwise(starts)]
    return [GroundTruth(exact[rows], labels[rows], corners_px[rows], scores[rows]) for rows in rows_of]


def _refuse(
    path: Path, annotations: Sequence[Mapping[str, Any]], wrong: NDArray[Any], problem: str, field: str
) -> None:
    """Raise about the first annotation that is wrong and say how many are."""
    if not wrong.any():
        return
    entry = annotations[int(wrong.argmax())]
    raise ValueError(
        f"{path}: annotation {entry.get('id')} of image {entry.get('image_id')}: {problem}, found {field} "
        f"{entry.get(field)}; {int(wrong.sum())} of {len(annotations)} annotations are wrong; write the file again"
    )


def _tiles_by_image(tiles: _CocoFile, globals_: _CocoFile, partition: str) -> dict[str, list[int]]:
    """Image id -> positions of its tiles in the tile file, in their order; every global image has an entry."""
    numbers: dict[str, list[int]] = {str(entry["image_id"]): [] for entry in globals_.images}
    if len(numbers) != len(globals_.images):
        raise ValueError(f"{globals_.path}: expected every image_id once; materialize {partition} again")
    for at, entry in enumerate(tiles.images):
        image_id = str(entry["image_id"])
        if image_id not in numbers:
            raise ValueError(
                f"{tiles.path}: tile {entry.get('tile_id')} of {image_id}: the image is not in {globals_.path.name}; "
                f"materialize {partition} again"
            )
        numbers[image_id].append(at)
    return numbers


def _frames(store: ArtefactStore, lane: str, key: str) -> ImageFrames:
    crop_file, tiles_file = store.crop_metadata(key), store.tiles_metadata(key)
    try:
        return ImageFrames.from_metadata(read_json(crop_file), read_json(tiles_file))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename}: a labelled image has lost its metadata; materialize {lane}/tiles, then "
            f"{lane}/coco_labels"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{tiles_file} or {crop_file}: expected the frames of an image, found {error!r}; materialize {lane}/tiles"
        ) from error


def _check_frames(frames: ImageFrames, image: Mapping[str, Any], tiles: Sequence[Mapping[str, Any]]) -> None:
    """Labels and tiles of other sizes or names were made at different times: refuse to join them."""
    size, expected_size = (image["width"], image["height"]), (frames.global_size, frames.global_size)
    if size != expected_size:
        raise ValueError(f"expected a global image of {expected_size} px as in its tiles_meta, found {size}")
    listed = [(str(tile["tile_id"]), tile["width"], tile["height"]) for tile in tiles]
    expected = [(tile.tile_id, tile.width, tile.height) for tile in frames.tiles]
    if listed != expected:
        raise ValueError(
            f"expected the {len(expected)} tiles of its tiles_meta {_few(expected)}, found {len(listed)} {_few(listed)}"
        )


def _few(tiles: Sequence[tuple[str, int, int]]) -> str:
    shown = ", ".join(f"{name} {width}x{height}" for name, width, height in tiles[:2])
    return f"({shown}{', ...' if len(tiles) > 2 else ''})"


def _named(categories: Mapping[int, str]) -> str:
    return ", ".join(f"{key} {name}" for key, name in sorted(categories.items()))


def _patients(store: ArtefactStore, lane: str, image_ids: Sequence[str]) -> dict[str, str]:
    """Image id -> patient pseudonym; raw ids in the earlier scripts' manifests are turned into pseudonyms."""
    path = store.manifest_export(lane, "parquet")
    earlier = store.manifest_export(lane, "jsonl")
    columns = ["image_id", "dataset", "patient_id"]
    if path.exists():
        manifest = pl.read_parquet(path, columns=columns, memory_map=False)
    elif earlier.exists():
        path = earlier
        lines = pl.read_ndjson(earlier)
        manifest = lines.select(columns)
        if "content_hash" not in lines.columns:
            key = patient_key(store)
            pseudonyms = [pseudonym(key, row["dataset"], str(row["patient_id"])) for row in manifest.to_dicts()]
            manifest = manifest.with_columns(pl.Series("patient_id", pseudonyms))
    else:
        raise FileNotFoundError(f"{path}: expected the lane's manifest, found none; materialize {lane}/manifest")
    patients = dict(zip(manifest["image_id"], manifest["patient_id"], strict=True))
    missing = [image_id for image_id in image_ids if image_id not in patients]
    if missing:
        raise ValueError(
            f"{path}: expected a row for every labelled image, found none for {missing[0]} ({len(missing)} missing); "
            f"materialize {lane}/manifest, then {lane}/coco_labels"
        )
    return {image_id: patients[image_id] for image_id in image_ids}


def _tiles_made_from(store: ArtefactStore, lane: str) -> dict[str, str]:
    """Image id -> content hash and fingerprint by which the tiles' index knows the pixels; later batches hold."""
    made_from: dict[str, str] = {}
    for batch in store.indexed_batches(lane, "tiles"):
        index = read_index_table(store.stage_index(lane, "tiles", batch))
        if "fingerprint" not in index.columns:
            continue
        done = index.filter(pl.col("quarantine_reason").is_null())
        rows = zip(done["image_id"], done["content_hash"], done["fingerprint"], strict=True)
        made_from |= {image_id: f"{content}.{fingerprint}" for image_id, content, fingerprint in rows}
    return made_from


def _tiles_fingerprint(lane: str, frames: ImageFrames, tiles: Sequence[LabelledTile], made_from: str | None) -> str:
    """16 hex digits of an image's tile pixels: by what they were made from, else by the files' bytes."""
    digest = blake3(repr((frames.frame, frames.tiles)).encode())
    if made_from is not None:
        digest.update(made_from.encode())
        return digest.hexdigest()[:_FINGERPRINT_DIGITS]
    for tile in tiles:
        try:
            digest.update(tile.file.read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{tile.file}: expected a tile, found none; materialize {lane}/tiles with `tiles` in `persist`"
            ) from error
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


class _PathsInside:
    """Resolves many file names below one root; each folder's symlinks are followed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, Path] = {}

    def resolve(self, name: str, named_in: Path) -> Path:
        try:
            if PurePosixPath(name).name in ("", ".", ".."):
                raise PathEscapesRootError(f"{name!r}: expected the path of a file below {self._root}")
            folder, _, last = name.rpartition("/")
            if folder not in self._folders:
                self._folders[folder] = resolve_inside(self._root, folder or ("/" if name.startswith("/") else "."))
            path = self._folders[folder] / last
            return resolve_inside(self._root, name) if path.is_symlink() else path
        except PathEscapesRootError as error:
            raise PathEscapesRootError(f"{named_in}: {error}") from error
