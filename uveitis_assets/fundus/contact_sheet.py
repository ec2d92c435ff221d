"""Contact sheets of a batch: mask outlines on raw images, and raw beside normalized crops.

Images are read reduced, so that a sheet costs about as much as preprocessing one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.imaging.drawing import fitted_size, on_black_square, picture_grid
from uveitis_assets.imaging.preview_jpeg import encode_within
from uveitis_assets.landing.content_hash import content_hash
from uveitis_assets.landing.landed_files import read_landed_file
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.index import Row, read_stage_index
from uveitis_assets.storage.files import read_json, write_bytes
from uveitis_assets.storage.store import ArtefactStore

_CELL_PX = 240
_CAPTION_PX = 18
_GREEN, _ORANGE, _WHITE = (60, 255, 60), (255, 150, 0), (235, 235, 235)
_MONTAGE_IMAGES = 50
_REDUCED_FLAGS = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
    (1, cv2.IMREAD_COLOR),
)

Pixels = NDArray[np.uint8]


def roi_contact_sheet(
    store: ArtefactStore, lane: str, batch: str, images: Sequence[RegisteredImage], *, n_images: int = 12
) -> bytes | None:
    """JPEG (at most 150 kB) of raw images with mask outlines: green, or orange for a fallback's mask.

    Args:
        store: holds artefacts and raw images.
        lane: the lane's name.
        batch: the batch's key; its ROI index has to exist.
        images: the batch's images.
        n_images: how many are shown, chosen evenly over the batch.

    Returns:
        None when the batch has no usable image.
    """
    rows = read_stage_index(store.stage_index(lane, "roi_masks", batch))
    cells = [_roi_cell(store, image, rows[image.image_id]) for image in _evenly(images, rows, n_images)]
    return encode_within(picture_grid(cells, 4)) if cells else None


def normalization_contact_sheet(
    store: ArtefactStore, lane: str, batch: str, images: Sequence[RegisteredImage], *, n_images: int = 8
) -> bytes | None:
    """JPEG (at most 150 kB) of raw crops, each beside its normalized crop; arguments as roi_contact_sheet."""
    rows = read_stage_index(store.stage_index(lane, "normalized_crops", batch))
    # The global image is the normalized crop at a tenth of the cost of decoding that.
    tiles = read_stage_index(store.stage_index(lane, "tiles", batch))
    cells = [
        _normalization_cell(store, image, rows[image.image_id], tiles.get(image.image_id))
        for image in _evenly(images, rows, n_images)
    ]
    return encode_within(picture_grid(cells, 2)) if cells else None


def write_roi_montages(store: ArtefactStore, lane: str, batches: Mapping[str, Sequence[RegisteredImage]]) -> list[str]:
    """Write verify/{dataset}_roi_overlay_montage.png for each dataset tag of a lane.

    Each shows 50 images evenly over its batches.

    Args:
        store: holds artefacts and raw images.
        lane: the lane's name.
        batches: images of each batch that has an ROI index.

    Returns:
        The dataset tags written.
    """
    rows: dict[str, Row] = {}
    for batch in batches:
        rows |= read_stage_index(store.stage_index(lane, "roi_masks", batch))
    images = [image for batch_images in batches.values() for image in batch_images]
    written = []
    for dataset in sorted({image.dataset for image in images}):
        own = [image for image in images if image.dataset == dataset]
        cells = [_roi_cell(store, image, rows[image.image_id]) for image in _evenly(own, rows, _MONTAGE_IMAGES)]
        if cells:
            montage = cv2.cvtColor(picture_grid(cells, 10), cv2.COLOR_RGB2BGR)
            path = store.verify_folder() / f"{dataset}_roi_overlay_montage.png"
            write_bytes(path, cv2.imencode(".png", montage)[1].tobytes())
            written.append(dataset)
    return written


def _evenly(images: Sequence[RegisteredImage], rows: Mapping[str, Row], n_images: int) -> list[RegisteredImage]:
    """At most ``n_images`` usable images, evenly spaced in the order of their ids."""
    usable = sorted(
        (
            image
            for image in images
            if (row := rows.get(image.image_id)) is not None and row["quarantine_reason"] is None
        ),
        key=lambda image: image.image_id,
    )
    if len(usable) <= n_images:
        return usable
    return [usable[int(position)] for position in np.linspace(0, len(usable) - 1, n_images)]


def _roi_cell(store: ArtefactStore, image: RegisteredImage, row: Row) -> Pixels:
    raw = _raw_reduced(store, image, row["width"], row["height"])
    mask = cv2.imread(str(store.roi_mask(row["key"])), cv2.IMREAD_GRAYSCALE)
    if raw is None or mask is None:
        return _with_caption(np.zeros((_CELL_PX, _CELL_PX, 3), dtype=np.uint8), f"{row['key']} cannot be read")
    picture = _fit(raw)
    height, width = picture.shape[:2]
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, _ORANGE if row["fallbacks"] else _GREEN, 2)
    caption = f"{row['method']} {row['area_ratio']:.2f} {row['key']}"
    return _with_caption(_centred(picture), caption)


def _normalization_cell(store: ArtefactStore, image: RegisteredImage, row: Row, tiles: Row | None) -> Pixels:
    width, height = read_json(store.crop_metadata(row["key"]))["orig_size"]
    raw = _raw_reduced(store, image, width, height)
    normalized = _normalized_picture(store, row, tiles)
    if raw is None or normalized is None:
        blank = np.zeros((_CELL_PX, 2 * _CELL_PX, 3), dtype=np.uint8)
        return _with_caption(blank, f"{row['key']} is not on disk")
    scale = raw.shape[1] / width
    x0, y0, x1, y1 = (round(row[name] * scale) for name in ("x0", "y0", "x1", "y1"))
    pair = np.hstack([_centred(_fit(raw[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)])), _centred(_fit(normalized))])
    return _with_caption(pair, f"{row['method']} {row['key']}")


def _normalized_picture(store: ArtefactStore, row: Row, tiles: Row | None) -> Pixels | None:
    paths = [store.normalized_crop(row["key"])]
    # Without their metadata the tiles belong to a former crop.
    if tiles is not None and tiles["global_size"] is not None and store.tiles_metadata(row["key"]).exists():
        paths.insert(0, store.global_image(row["key"], tiles["global_size"]))
    for path in paths:
        if path.exists():
            image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
            return None if image is None else np.asarray(image, dtype=np.uint8)
    return None


def _raw_reduced(store: ArtefactStore, image: RegisteredImage, width: int, height: int) -> Pixels | None:
    """The raw image reduced by a power of two, at least as large as a cell; None if it has changed."""
    inside = image.path.is_relative_to(store.raw)
    relative = image.path.relative_to(store.raw).as_posix() if inside else image.path.as_posix()
    try:
        data = read_landed_file(store.raw, relative)
    except QuarantineError:
        return None
    if content_hash(data) != image.content_hash:
        return None
    flags = next(flags for factor, flags in _REDUCED_FLAGS if factor == 1 or max(width, height) >= factor * _CELL_PX)
    picture = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    return None if picture is None else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _fit(image: Pixels) -> Pixels:
    """Scale to a cell, keeping the aspect ratio."""
    interpolation = cv2.INTER_AREA if max(image.shape[:2]) > _CELL_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, fitted_size(image, _CELL_PX), interpolation=interpolation), dtype=np.uint8)


def _centred(image: Pixels) -> Pixels:
    return on_black_square(image, _CELL_PX, centred=True)


def _with_caption(picture: Pixels, caption: str) -> Pixels:
    line = np.full((_CAPTION_PX, picture.shape[1], 3), 30, dtype=np.uint8)
    n_characters = picture.shape[1] // 7
    shown = caption if len(caption) <= n_characters else f"{caption[: n_characters - 2]}.."
    cv2.putText(line, shown, (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, _WHITE, 1, cv2.LINE_AA)
    return np.vstack([picture, line])
