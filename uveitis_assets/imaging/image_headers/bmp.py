"""Reads the header of a BMP file: Pillow opens files whose rows are cut off without an error."""

from __future__ import annotations

import struct

from uveitis_assets.imaging.image_headers.structure import ColorModel, ImageStructure, MalformedError


def read_bmp(data: bytes) -> ImageStructure:
    """Read the header; the rows that the file holds bound its pixels exactly.

    Raises:
        MalformedError: the header makes no sense.
        struct.error: it is cut off.
    """
    data_start, header_size = struct.unpack_from("<II", data, 10)
    compression, alpha_mask = 0, 0
    if header_size == 12:
        width, height, _, bits_per_pixel = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits_per_pixel, compression = struct.unpack_from("<iiHHI", data, 18)
        if header_size >= 56:
            (alpha_mask,) = struct.unpack_from("<I", data, 66)
    height = abs(height)  # negative: rows run from top to bottom
    if width <= 0 or height == 0 or bits_per_pixel not in (1, 2, 4, 8, 16, 24, 32):
        raise MalformedError(f"the BMP header says {width}x{height} pixels of {bits_per_pixel} bits")
    color: ColorModel = "palette" if bits_per_pixel <= 8 else "RGB"
    row_bytes = (width * bits_per_pixel + 31) // 32 * 4
    is_raw = compression in (0, 3, 6)
    held_rows = max(0, len(data) - data_start) // row_bytes
    return ImageStructure(
        format="BMP",
        width=width,
        height=height,
        orientation=1,
        color=color if is_raw else "other",
        bits=5 if bits_per_pixel == 16 else 8,
        has_alpha=bits_per_pixel == 32 and compression in (3, 6) and alpha_mask != 0,
        n_frames=1,
        data_start=data_start,
        max_pixels_in_data=held_rows * width if is_raw else width * height,
    )
