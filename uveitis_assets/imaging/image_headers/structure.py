"""Content of image file headers, and the errors of files that are truncated or inconsistent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ImageFormat = Literal["JPEG", "PNG", "BMP", "TIFF"]
ColorModel = Literal["RGB", "grey", "palette", "CMYK", "LAB", "other"]


class IncompleteError(ValueError):
    """The file ends before the end of the data that its headers announce."""


class MalformedError(ValueError):
    """The file starts like an image but its headers contradict the format."""


@dataclass(frozen=True, slots=True)
class ImageStructure:
    """Facts from the headers; ``width`` and ``height`` are as stored, before ``orientation`` (EXIF, 1..8).

    ``data_start`` is the offset from which pixel data follows (JPEG: behind the first scan header).
    ``max_pixels_in_data`` bounds how many pixels the bytes can hold at the format's best compression.
    """

    format: ImageFormat
    width: int
    height: int
    orientation: int
    color: ColorModel
    bits: int
    has_alpha: bool
    n_frames: int
    data_start: int
    max_pixels_in_data: int
