"""Reads the chunks of a PNG file."""

from __future__ import annotations

import struct

from uveitis_assets.imaging.image_headers.exif import exif_orientation
from uveitis_assets.imaging.image_headers.structure import ColorModel, ImageStructure, IncompleteError, MalformedError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """List (type, start of the body, length) of every chunk up to and including IEND.

    Raises:
        IncompleteError: the file ends before IEND.
    """
    chunks = []
    position, end = len(PNG_SIGNATURE), len(data)
    while True:
        if position + 12 > end:
            raise IncompleteError("the PNG end chunk is missing")
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        if position + 12 + length > end:
            raise IncompleteError(f"the PNG chunk {kind!r} is cut off")
        chunks.append((kind, position + 8, length))
        if kind == b"IEND":
            return chunks
        position += 12 + length


def read_png(data: bytes) -> ImageStructure:
    """Read the header chunk and walk the others.

    Raises:
        MalformedError: the header makes no sense.
        struct.error: it is cut off.
    """
    if data[12:16] != b"IHDR":
        raise MalformedError(f"the first PNG chunk is {data[12:16]!r}, expected IHDR")
    width, height, bits, color_type = struct.unpack_from(">IIBB", data, 16)
    colors: dict[int, ColorModel] = {0: "grey", 2: "RGB", 3: "palette", 4: "grey", 6: "RGB"}
    if color_type not in colors or width == 0 or height == 0:
        raise MalformedError(f"the PNG header says {width}x{height} pixels, colour type {color_type}")
    orientation, n_frames, has_transparency, data_start = 1, 1, False, len(data)
    position = len(PNG_SIGNATURE)
    # A chunk cut off ends the walk: check_complete reports it after the size was checked.
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        body = position + 8
        if kind == b"IDAT":
            data_start = min(data_start, body)
        elif kind == b"tRNS":
            has_transparency = True
        elif kind == b"acTL":
            n_frames = max(2, *struct.unpack_from(">I", data, body))
        elif kind == b"eXIf":
            orientation = exif_orientation(data[body : body + length])
        elif kind == b"IEND":
            break
        position = body + length + 4
    # Deflate expands at most 1032:1; bits * channels per pixel.
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    return ImageStructure(
        format="PNG",
        width=width,
        height=height,
        orientation=orientation,
        color=colors[color_type],
        bits=bits,
        has_alpha=color_type in (4, 6) or has_transparency,
        n_frames=n_frames,
        data_start=data_start,
        max_pixels_in_data=len(data) * 1032 * 8 // max(1, bits * channels),
    )


def check_png(data: bytes) -> None:
    """Look for all chunks up to the end chunk, image data among them.

    Raises:
        IncompleteError: something is missing.
    """
    if not any(kind == b"IDAT" for kind, _, _ in png_chunks(data)):
        raise IncompleteError("the PNG file holds no image data")
