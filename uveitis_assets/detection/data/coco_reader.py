"""Reads one lane's labelled images of one fold and split from its COCO files.

The global and the tile COCO file are joined with the frames (crop_meta, tiles_meta), the manifest (patient) and the
tiles' index (what the pixels were made from). Files of the earlier scripts have the same keys and are read too. Only
images that the COCO files list enter; tile files are opened only where no index says what their pixels were made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from blake3 import blake3

from uveitis_assets.detection.data.coco_ground_truth import LabelFile, named_categories
from uveitis_assets.detection.data.labelled_split import (
    FINGERPRINT_DIGITS,
    LabelledImage,
    LabelledSplit,
    LabelledTile,
    labelled_fingerprint,
)
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import GLOBAL_TILE_ID, ImageFrames
from uveitis_assets.landing.pseudonyms import patient_key, pseudonym
from uveitis_assets.stages.index import read_index_table
from uveitis_assets.storage.files import PathEscapesRootError, read_json, resolve_inside
from uveitis_assets.storage.store import ArtefactStore, artefact_key


def read_labelled_split(
    store: ArtefactStore,
    lane: str,
    *,
    fold: int,
    split: str,
    pseudo_labels_of: str | None = None,
    global_tile: bool = False,
) -> LabelledSplit:
    """Read all labelled images of a lane, fold and split, and their tiles, in the COCO files' order.

    Boxes are in px of the global image and of the tile (pixel edges, x0 y0 x1 y1), whichever frame the tiles were
    cut from. Annotations whose box is thinner than 1/128 px are left out with a warning in the log. Pseudo-labels
    (``"pseudo": true``) keep their score, all others have score 1.

    Args:
        store: holds labels, metadata, manifest and index.
        lane: dataset lane, the first part of the COCO files' names.
        fold: 0 reads labels_coco/, others labels_coco/fold<k>/.
        split: train, val or test.
        pseudo_labels_of: detector whose expanded training labels are read instead; only with ``train``.
        global_tile: the global image is one more tile where tiles are cut from the native crop; its labels are the
            image's own.

    Raises:
        FileNotFoundError: a file is missing; the message names the asset that makes it.
        PathEscapesRootError: a tile's file name leads out of the store.
        ValueError: the files contradict each other, or a box lies outside its image.
    """
    partition, paths = _label_files(store, lane, fold, split, pseudo_labels_of)
    globals_file, tiles_file = (LabelFile.read(path, partition) for path in paths)
    if globals_file.categories != tiles_file.categories:
        raise ValueError(
            f"{tiles_file.path}: expected the categories of {globals_file.path.name} "
            f"({named_categories(globals_file.categories)}), found {named_categories(tiles_file.categories)}; "
            f"materialize {partition} again"
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
        try:
            _check_frames(frames, entry, [tiles_file.images[at] for at in numbers])
        except ValueError as error:
            raise ValueError(
                f"{globals_file.path}: {image_id}: {error}; the labels are not of these tiles: materialize "
                f"{partition} again"
            ) from error
        tiles = _labelled_tiles(frames, tiles_file, numbers, inside)
        if global_tile:
            frames = frames.with_global_tile()
            tiles += _global_tiles(store, key, frames, globals_file.truths[number])
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


def _label_files(
    store: ArtefactStore, lane: str, fold: int, split: str, pseudo_labels_of: str | None
) -> tuple[str, list[Path]]:
    """The partition that makes the COCO files, and the files: of global images, then of tiles."""
    if pseudo_labels_of is None:
        partition = f"partition `fold{fold}|{split}` of {lane}/coco_labels"
        return partition, [store.coco_file(lane, split, fold, tiles=tiles) for tiles in (False, True)]
    if split != "train":
        raise ValueError(f"split: expected train with pseudo-labels, found {split}: nothing is evaluated by them")
    partition = f"partition `fold{fold}` of {pseudo_labels_of}/pseudo_labels"
    return partition, [store.pseudo_coco_file(pseudo_labels_of, lane, fold, tiles=tiles) for tiles in (False, True)]


def _labelled_tiles(
    frames: ImageFrames, tiles_file: LabelFile, numbers: Sequence[int], inside: _PathsInside
) -> tuple[LabelledTile, ...]:
    """The tiles of an image, at the positions ``numbers`` of the tile file."""
    return tuple(
        LabelledTile(
            tile_id=tile.tile_id,
            file=inside.resolve(str(tiles_file.images[at]["file_name"]), tiles_file.path),
            width=tile.width,
            height=tile.height,
            truth=tiles_file.truths[at],
        )
        for tile, at in zip(frames.tiles, numbers, strict=True)
    )


def _global_tiles(store: ArtefactStore, key: str, frames: ImageFrames, truth: GroundTruth) -> tuple[LabelledTile, ...]:
    """The global image as a tile with the image's own labels; none where the frames have no such tile."""
    file = store.global_image(key, frames.global_size)
    return tuple(
        LabelledTile(tile.tile_id, file, tile.width, tile.height, truth) for tile in frames.tiles if tile.is_global
    )


def _tiles_by_image(tiles: LabelFile, globals_: LabelFile, partition: str) -> dict[str, list[int]]:
    """Image id -> positions of its tiles in the tile file; every global image has an entry."""
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


def _patients(store: ArtefactStore, lane: str, image_ids: Sequence[str]) -> dict[str, str]:
    """Image id -> patient pseudonym; raw ids in the earlier scripts' manifests are turned into pseudonyms."""
    path = store.manifest_export(lane, "parquet")
    legacy = store.manifest_export(lane, "jsonl")
    columns = ["image_id", "dataset", "patient_id"]
    if path.exists():
        manifest = pl.read_parquet(path, columns=columns, memory_map=False)
    elif legacy.exists():
        path = legacy
        lines = pl.read_ndjson(legacy)
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
    """Image id -> content hash and fingerprint that its tiles were made from, by the tiles' indexes.

    Of two batches that hold an image the later one counts.
    """
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
        return digest.hexdigest()[:FINGERPRINT_DIGITS]
    for tile in tiles:
        if tile.tile_id == GLOBAL_TILE_ID:
            # It is made from what the other tiles show, and may be persisted or not.
            continue
        try:
            digest.update(tile.file.read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{tile.file}: expected a tile, found none; materialize {lane}/tiles with `tiles` in `persist`"
            ) from error
    return digest.hexdigest()[:FINGERPRINT_DIGITS]


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
