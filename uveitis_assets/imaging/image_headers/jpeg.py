"""Reads the headers of a JPEG file: 150 to 1000 times faster than decoding it."""

from __future__ import annotations

import struct

from uveitis_assets.imaging.image_headers.exif import exif_orientation
from uveitis_assets.imaging.image_headers.structure import ColorModel, ImageStructure, IncompleteError, MalformedError


def read_jpeg(data: bytes) -> ImageStructure:
    """Walk the markers up to the first scan.

    Raises:
        IncompleteError: there is no scan.
        MalformedError: the headers make no sense.
        struct.error: they are cut off.
    """
    position = 2
    orientation: int | None = None
    frame: tuple[int, int, int, int] | None = None
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise IncompleteError("the JPEG headers end before the image data")
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            continue
        if marker == 0xD9:
            raise MalformedError("the JPEG file holds no image data")
        (length,) = struct.unpack_from(">H", data, position)
        if marker == 0xDA:
            if frame is None:
                raise MalformedError("the JPEG file has a scan without a frame header")
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack_from(">BHHB", data, position + 2)
        elif marker == 0xE1 and orientation is None and data.startswith(b"Exif\0\0", position + 2):
            orientation = exif_orientation(data[position + 8 : position + length])
        position += length
    bits, height, width, n_components = frame
    if width == 0 or height == 0:
        raise MalformedError(f"the JPEG frame header says {width}x{height} pixels")
    colors: dict[int, ColorModel] = {1: "grey", 3: "RGB", 4: "CMYK"}
    return ImageStructure(
        format="JPEG",
        width=width,
        height=height,
        orientation=orientation or 1,
        color=colors.get(n_components, "other"),
        bits=bits,
        has_alpha=False,
        # Multi-picture files (MPO) hold a complete first picture; the further ones are previews or stereo partners.
        n_frames=1,
        data_start=position + length,
        # Every 8x8 block costs at least one bit in the first scan.
        max_pixels_in_data=max(0, len(data) - position) * 8 * 64,
    )


def check_jpeg(data: bytes, data_start: int) -> None:
    """Look for the end marker behind the first scan header.

    Inside entropy-coded data FF is always followed by 00 or a restart marker, and thumbnails lie before the first scan:
    an end marker behind it is the image's own (or that of a later picture).

    Raises:
        IncompleteError: there is none.
    """
    if data.rfind(b"\xff\xd9") < data_start:
        raise IncompleteError("the JPEG end marker is missing")
