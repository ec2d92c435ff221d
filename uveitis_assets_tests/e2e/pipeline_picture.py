"""The README's first picture: one sample image on its way from landing to labelled tiles, from the lane's artefacts.

Draws only what the lane wrote; computes no pixels of its own but scaling, captions and the mask's outline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from uveitis_assets.imaging.drawing import draw_box, draw_polygon
from uveitis_assets.labels.palette import category_color
from uveitis_assets.labels.segmentation import rings_of_segmentation
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key

Pixels = NDArray[np.uint8]

_PANEL_PX, _TILES_PX, _TILE_GAP_PX = 460, 420, 6
_GAP_PX, _ARROW_PX, _MARGIN_PX, _CAPTION_PX = 12, 32, 16, 66
_PAPER, _INK, _PALE_INK = (255, 255, 255), (24, 28, 40), (104, 112, 130)
_OUTLINE = (60, 255, 60)


def pipeline_picture(store: ArtefactStore, lane: str) -> Image.Image:
    """Compose the picture of the lane's image with the most lesions.

    Raises:
        FileNotFoundError: the lane has no COCO files of fold 0, or its images are not persisted.
    """
    cocos = [read_json(store.coco_file(lane, split, 0, tiles=True)) for split in ("train", "val", "test")]
    coco = max(cocos, key=lambda coco: max(Counter(_image_ids(coco)).values(), default=0))
    image_id = Counter(_image_ids(coco)).most_common(1)[0][0]
    key = artefact_key(image_id)
    stem = image_id.partition("::")[2]
    raw = _read(next(iter(sorted(store.raw.rglob(f"{stem}.jpg")))))
    mask = cv2.imread(str(store.roi_mask(key)), cv2.IMREAD_GRAYSCALE)
    norm = _read(store.normalized_crop(key))
    panels = [
        (_scaled(raw), "Landed photograph", f"{raw.shape[1]} x {raw.shape[0]} px"),
        (_outlined(raw, mask), "ROI mask", "lids, lashes, rim left out"),
        (_scaled(norm), "Normalized crop", "statistics inside the ROI only"),
        (_tiles(store, coco, image_id), "Tiles with boxes", "COCO labels per fold and split"),
    ]
    return _in_a_row(panels)


def _image_ids(coco: dict[str, Any]) -> list[str]:
    """Source image of each annotation."""
    sources = {image["id"]: image["image_id"] for image in coco["images"]}
    return [sources[annotation["image_id"]] for annotation in coco["annotations"]]


def _outlined(raw: Pixels, mask: Any) -> Pixels:
    shaded = np.where(mask[..., None] > 0, raw, raw // 3).astype(np.uint8)
    panel = _scaled(shaded)
    small = cv2.resize(mask, (panel.shape[1], panel.shape[0]), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(panel, contours, -1, _OUTLINE, 2, cv2.LINE_AA)
    return panel


def _tiles(store: ArtefactStore, coco: dict[str, Any], image_id: str) -> Pixels:
    """The image's tiles with their boxes, in their grid."""
    own = [image for image in coco["images"] if image["image_id"] == image_id]
    metadata = read_json(store.tiles_metadata(artefact_key(image_id)))["tiles"]
    origins = {tile["tile_id"]: (tile["x0"], tile["y0"]) for tile in metadata}
    columns = sorted({x for x, _ in origins.values()})
    rows = sorted({y for _, y in origins.values()})
    side = (_TILES_PX - _TILE_GAP_PX * (len(columns) - 1)) // len(columns)
    step = side + _TILE_GAP_PX
    panel = np.full((step * len(rows) - _TILE_GAP_PX, step * len(columns) - _TILE_GAP_PX, 3), 255, np.uint8)
    for image in own:
        tile = _read(store.root / image["file_name"])
        scale = side / tile.shape[1]
        shown = np.asarray(cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        for annotation in coco["annotations"]:
            if annotation["image_id"] == image["id"]:
                color = category_color(annotation["category_id"])
                for ring in rings_of_segmentation(annotation["segmentation"]):
                    draw_polygon(shown, ring * scale, color)
                left, top, width, height = (value * scale for value in annotation["bbox"])
                draw_box(shown, (left, top, left + width, top + height), color)
        x, y = origins[image["tile_id"]]
        row, column = rows.index(y) * step, columns.index(x) * step
        panel[row : row + side, column : column + side] = shown
    return panel


def _in_a_row(panels: Sequence[tuple[Pixels, str, str]]) -> Image.Image:
    height = max(panel.shape[0] for panel, _, _ in panels)
    between = 2 * _GAP_PX + _ARROW_PX
    width = sum(panel.shape[1] for panel, _, _ in panels) + between * (len(panels) - 1)
    picture = Image.new("RGB", (width + 2 * _MARGIN_PX, height + _CAPTION_PX + 2 * _MARGIN_PX), _PAPER)
    pen = ImageDraw.Draw(picture)
    title, note = ImageFont.load_default(25), ImageFont.load_default(18)
    left = _MARGIN_PX
    for number, (panel, text, remark) in enumerate(panels):
        if number:
            _arrow(pen, left - between + _GAP_PX, _MARGIN_PX + height // 2)
        picture.paste(Image.fromarray(panel), (left, _MARGIN_PX + (height - panel.shape[0]) // 2))
        middle, top = left + panel.shape[1] // 2, _MARGIN_PX + height + 10
        pen.text((middle, top), text, fill=_INK, font=title, anchor="ma")
        pen.text((middle, top + 34), remark, fill=_PALE_INK, font=note, anchor="ma")
        left += panel.shape[1] + between
    return picture


def _arrow(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.line([(x, y), (x + _ARROW_PX - 8, y)], fill=_PALE_INK, width=4)
    pen.polygon([(x + _ARROW_PX - 14, y - 10), (x + _ARROW_PX, y), (x + _ARROW_PX - 14, y + 10)], fill=_PALE_INK)


def _scaled(image: Pixels) -> Pixels:
    scale = _PANEL_PX / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _read(path: Any) -> Pixels:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise FileNotFoundError(f"{path}: expected an image")
    return np.asarray(image, dtype=np.uint8)
