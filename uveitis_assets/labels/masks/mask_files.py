"""Decodes mask files of any common format to the levels and the opacity of their pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from uveitis_assets.labels.findings import LabelFinding
from uveitis_assets.labels.masks.mask_values import marked_pixels
from uveitis_assets.landing.quarantine import QuarantineError

EXIF_ORIENTATION = 0x0112
PHOTOMETRIC_INTERPRETATION = 262
MIN_IS_WHITE = 0


@dataclass(frozen=True, slots=True)
class MaskReading:
    """Lesion pixels of one mask file, bool (height, width), displayed raw frame, and findings."""

    marked: NDArray[np.bool_]
    findings: tuple[LabelFinding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Strongest channel and, where the file has one, opacity: (height, width) each, displayed frame."""

    levels: NDArray[Any]
    alpha: NDArray[Any] | None
    lossy: bool
    note: str


def parse_mask(data: bytes, name: str, raw_size: tuple[int, int]) -> MaskReading:
    """Decode one mask file.

    A pixel is lesion when it is not transparent and its colour (for palettes: the colour of its entry) is not black;
    in grey masks when it is above half height, see ``mask_values``. Palettes whose used entries are all black are read
    by their numbers.

    Args:
        data: the whole file.
        name: what messages call the file.
        raw_size: width and height of the displayed raw image, px.

    Raises:
        QuarantineError: ``bad_label``: unreadable, truncated or animated file, another size than the image, a mask
            without any background, one with lesions in its alpha channel only, or one too dark to be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise bad_mask(name, f"found {getattr(image, 'n_frames', 1)} frames, expected one")
            # Before any pixel is decoded: the size (either way round, EXIF comes after the pixels in PNG files).
            if image.size not in {raw_size, raw_size[::-1]}:
                raise bad_mask(name, _other_size(*image.size, raw_size))
            decoded = _decode(image, data)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, QuarantineError):
            raise
        raise bad_mask(name, f"found {_reason(error)}, expected a mask image that can be decoded") from error
    levels = decoded.levels
    if levels.shape != raw_size[::-1]:
        raise bad_mask(name, _other_size(levels.shape[1], levels.shape[0], raw_size))
    try:
        found = marked_pixels(levels, decoded.alpha, lossy=decoded.lossy)
    except ValueError as error:
        raise bad_mask(name, str(error)) from error
    if found.marked.all():
        raise bad_mask(
            name, "found every pixel marked as lesion, expected lesions on a black or transparent background"
        )
    notes = [note for note in (decoded.note, found.note) if note]
    return MaskReading(found.marked, tuple(LabelFinding("grey_mask", f"{name}: {note}") for note in notes))


def bad_mask(name: str, message: str) -> QuarantineError:
    """The error that sets an image aside for one of its masks."""
    return QuarantineError("bad_label", f"{name}: {message}")


def _decode(image: ImageFile.ImageFile, data: bytes) -> _Decoded:
    # 16-bit colour: Pillow would keep the high bytes only.
    deep = len(image.getbands()) > 1 and any(";16" in str(tile.args) for tile in image.tile)
    lossy = image.format == "JPEG" or "jpeg" in str(image.info.get("compression", ""))
    min_is_white = (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == MIN_IS_WHITE
    )
    image.load()
    note = _separate_black_entries(image) if image.mode == "P" else ""
    levels, alpha = _deep_levels(data) if deep else _levels(image)
    # Pillow inverts 1 and 8 bits itself.
    if min_is_white and image.mode[0] in "IF":
        levels = levels.max() - levels if levels.any() else np.ones_like(levels)
    return _Decoded(levels, alpha, lossy, note)


def _separate_black_entries(image: Image.Image) -> str:
    """Colour the entries of a palette whose used ones are all black, in place.

    Returns a note where several entries are black, else an empty text.
    """
    counts = np.bincount(np.asarray(image).ravel(), minlength=256)
    used = np.flatnonzero(counts)
    colors = np.zeros((256, 3), np.uint8)
    entries = np.array(image.getpalette("RGB") or (), np.uint8).reshape(-1, 3)
    colors[: len(entries)] = entries
    black = [int(entry) for entry in used if not colors[entry].any()]
    if len(black) < 2 or "transparency" in image.info:
        return ""
    listed = ", ".join(map(str, black))
    if len(black) < len(used):
        return f"the palette's entries {listed} are all black; all are read as background"
    background = 0 if 0 in black else int(counts.argmax())
    image.putpalette(np.where(np.arange(256)[:, None] == background, 0, 255).repeat(3, 1).astype(np.uint8).tobytes())
    return (
        f"the palette's entries {listed} are all black; {background} is read as background, the others as lesions; "
        "give lesions a colour"
    )


def _levels(image: Image.Image) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if image.mode == "P" or (image.mode in {"1", "L", "RGB"} and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels, None
    if image.mode in {"LA", "RGBA"}:
        return pixels[..., :-1].max(axis=2), pixels[..., -1]
    if image.mode == "RGB":
        return pixels.max(axis=2), None
    raise ValueError(f"colour mode {image.mode}")


def _deep_levels(data: bytes) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """``_levels`` of a file with 16 bits per channel and several channels."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise ValueError("16-bit channels that OpenCV does not decode")
    if pixels.shape[2] in {2, 4}:
        return pixels[..., :-1].max(axis=2), pixels[..., -1]
    return pixels.max(axis=2), None


def _other_size(width: int, height: int, raw_size: tuple[int, int]) -> str:
    return f"found {width}x{height} pixels, expected its image's {raw_size[0]}x{raw_size[1]}"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
