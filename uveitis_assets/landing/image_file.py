"""Decodes landed image files to RGB; the one place that decides how their pixels are read."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from uveitis_assets.imaging.image_headers import png_chunks
from uveitis_assets.landing.image_probe import accepted_structure
from uveitis_assets.landing.quarantine import QuarantineError

_ROTATION_OF_ORIENTATION = {
    3: cv2.ROTATE_180,
    6: cv2.ROTATE_90_CLOCKWISE,
    8: cv2.ROTATE_90_COUNTERCLOCKWISE,
}


def decode_rgb(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image to RGB with its EXIF orientation applied.

    Releases the GIL while decoding. Damage is found by the file's structure, by PNG checksums and by the decoder; bit
    errors inside JPEG or TIFF data, which have no checksum, pass.

    Returns:
        uint8 array (height, width, 3), RGB, C-contiguous.

    Raises:
        QuarantineError: as `probe_image`; ``truncated`` also when the pixel data is damaged.
    """
    structure = accepted_structure(data, name)
    if structure.format == "PNG":
        _check_png_checksums(data, name)
    flags = cv2.IMREAD_COLOR_RGB
    if structure.format != "TIFF":  # the TIFF reader applies the orientation whatever the flags say
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise QuarantineError("truncated", f"{name}: the pixel data is damaged ({error.err})") from error
    if image is None:
        raise QuarantineError("truncated", f"{name}: the pixel data is incomplete or damaged; replace the file")
    pixels = cast("NDArray[np.uint8]", image)
    if structure.format != "TIFF":
        pixels = _orient(pixels, structure.orientation)
    expected = (structure.height, structure.width)
    if structure.orientation >= 5:
        expected = expected[::-1]
    if pixels.shape != (*expected, 3):
        raise QuarantineError(
            "truncated", f"{name}: the header says {expected[1]}x{expected[0]}, the data {pixels.shape[1::-1]}"
        )
    return pixels


def _check_png_checksums(data: bytes, name: str) -> None:
    view = memoryview(data)
    for kind, start, length in png_chunks(data):
        stored = int.from_bytes(view[start + length : start + length + 4], "big")
        if isal_zlib.crc32(view[start - 4 : start + length]) != stored:
            raise QuarantineError("truncated", f"{name}: the checksum of PNG chunk {kind!r} is wrong; copy it again")


def _orient(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Bring an image as stored into the position its EXIF orientation asks for (EXIF 2.32, tag 0x0112)."""
    if orientation in _ROTATION_OF_ORIENTATION:
        return cast("NDArray[np.uint8]", cv2.rotate(image, _ROTATION_OF_ORIENTATION[orientation]))
    match orientation:
        case 2:
            return cast("NDArray[np.uint8]", cv2.flip(image, 1))
        case 4:
            return cast("NDArray[np.uint8]", cv2.flip(image, 0))
        case 5:
            return cast("NDArray[np.uint8]", cv2.transpose(image))
        case 7:
            return cast("NDArray[np.uint8]", cv2.rotate(cv2.transpose(image), cv2.ROTATE_180))
        case _:
            return image
