"""Size, colour and orientation of JPEG, PNG, BMP and TIFF files, and whether their data is all there.

Read from the bytes, because Pillow hides 16-bit RGB, warns or raises about large images from within ``open`` and keeps
process-wide state, and OpenCV reports nothing before decoding. No pixel is decoded here; which images are accepted is
decided where they land.
"""

from __future__ import annotations

import struct

from uveitis_assets.imaging.image_headers.bmp import read_bmp
from uveitis_assets.imaging.image_headers.jpeg import check_jpeg, read_jpeg
from uveitis_assets.imaging.image_headers.png import PNG_SIGNATURE, check_png, png_chunks, read_png
from uveitis_assets.imaging.image_headers.structure import (
    ImageFormat,
    ImageStructure,
    IncompleteError,
    MalformedError,
)
from uveitis_assets.imaging.image_headers.tiff import check_tiff, read_tiff

__all__ = [
    "ImageFormat",
    "ImageStructure",
    "IncompleteError",
    "MalformedError",
    "check_complete",
    "png_chunks",
    "read_structure",
    "sniff_foreign_format",
    "sniff_format",
]

_FOREIGN_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WebP"),
    (4, b"ftyp", "HEIF, AVIF or a video"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (128, b"DICM", "DICOM"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
)


def sniff_format(data: bytes) -> ImageFormat | None:
    """Name the format from the first bytes; None when it is none of the four."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"BM") and len(data) >= 18 and int.from_bytes(data[14:18], "little") in range(12, 256):
        return "BMP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    return None


def sniff_foreign_format(data: bytes) -> str | None:
    """Name an image format that is recognised but not read."""
    for offset, signature, name in _FOREIGN_SIGNATURES:
        if data.startswith(signature, offset):
            return name
    return None


def read_structure(data: bytes, image_format: ImageFormat) -> ImageStructure:
    """Parse the headers of a whole file held in memory.

    Raises:
        IncompleteError: the headers themselves are cut off.
        MalformedError: they make no sense.
    """
    try:
        match image_format:
            case "JPEG":
                return read_jpeg(data)
            case "PNG":
                return read_png(data)
            case "BMP":
                return read_bmp(data)
            case "TIFF":
                return read_tiff(data)
    except (struct.error, IndexError) as error:
        raise IncompleteError(f"the {image_format} headers are cut off after {len(data)} bytes") from error


def check_complete(data: bytes, structure: ImageStructure) -> None:
    """Check that the pixel data announced by the headers lies inside the file.

    Costs microseconds: no checksum, no decoding. Bytes behind the image (camera trailers) are allowed.

    Raises:
        IncompleteError: something is missing at the end.
    """
    if structure.width * structure.height > structure.max_pixels_in_data:
        raise IncompleteError(
            f"the header claims {structure.width}x{structure.height} pixels, more than {len(data)} bytes can hold"
        )
    try:
        match structure.format:
            case "JPEG":
                check_jpeg(data, structure.data_start)
            case "PNG":
                check_png(data)
            case "BMP":
                pass  # max_pixels_in_data is exact
            case "TIFF":
                check_tiff(data, structure)
    except (struct.error, IndexError) as error:
        raise IncompleteError(f"the {structure.format} structure is cut off after {len(data)} bytes") from error
