"""Landed image files: read safely, judged by their headers, decoded to RGB.

The one place that opens landed images and the one that decides which of them the pipeline can use: 8-bit RGB JPEG,
PNG, BMP or TIFF with one picture of a sensible size. Everything else raises `QuarantineError` with a reason. It
does not look at labels or at what the picture shows.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import cast

import cv2
import numpy as np
from blake3 import blake3
from isal import isal_zlib
from numpy.typing import NDArray

from uveitis_assets.imaging.image_headers import (
    ImageFormat,
    ImageStructure,
    IncompleteError,
    MalformedError,
    check_complete,
    png_chunks,
    read_structure,
    sniff_foreign_format,
    sniff_format,
)
from uveitis_assets.landing.quarantine import QuarantineError

FORMAT_BY_EXTENSION: dict[str, ImageFormat] = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
MIN_SIDE = 32
MAX_PIXELS = 178_956_970  # where Pillow calls an image a decompression bomb
MAX_FILE_BYTES = 1 << 30

_ROTATION_OF_ORIENTATION = {
    3: cv2.ROTATE_180,
    6: cv2.ROTATE_90_CLOCKWISE,
    8: cv2.ROTATE_90_COUNTERCLOCKWISE,
}


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Size in pixels as the image is shown (after EXIF orientation) and the file format."""

    width: int
    height: int
    format: ImageFormat


def is_image_name(name: str) -> bool:
    """Say whether the file name carries one of the image extensions, in any case."""
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in FORMAT_BY_EXTENSION


def content_hash(data: bytes) -> str:
    """BLAKE3 hex digest: the identity of a landed file."""
    return blake3(data).hexdigest()


def read_landed_file(root: Path, relative_path: str, name: str | None = None) -> bytes:
    """Read one file below ``root``, following symlinks that stay below it.

    The opened file itself is checked, so that a link swapped between check and use gains nothing. Pipes and devices
    are refused without waiting for them.

    Args:
        root: folder that must not be left, the raw root.
        relative_path: path below it (an absolute path below it works too).
        name: what messages call the file; its path unless given.

    Raises:
        QuarantineError: ``missing``, ``broken_symlink``, ``escapes_root``, ``too_large`` or ``unreadable``.
    """
    return read_landed_file_and_stat(root, relative_path, name)[0]


def read_landed_file_and_stat(root: Path, relative_path: str, name: str | None = None) -> tuple[bytes, os.stat_result]:
    """Read one file like `read_landed_file`; the second value is its state just before the read."""
    path = root / relative_path
    name = name or relative_path
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # noqa: TID251  it reads
    except OSError as error:
        raise _open_failure(path, name, error) from error
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode):
        os.close(handle)
        raise QuarantineError("unreadable", f"{name}: expected a regular file; remove it")
    with os.fdopen(handle, "rb") as stream:
        place = _place_of(handle, path)
        if not place.is_relative_to(os.path.realpath(root)):
            raise QuarantineError(
                "escapes_root", f"{name}: leads out of the raw folder; copy the file below it instead"
            )
        if state.st_size > MAX_FILE_BYTES:
            raise QuarantineError(
                "too_large", f"{name}: expected at most {MAX_FILE_BYTES} bytes, found {state.st_size}"
            )
        try:
            return stream.read(), state
        except OSError as error:
            raise QuarantineError("unreadable", f"{name}: {error.strerror}; check the disk") from error


def _place_of(handle: int, path: Path) -> PurePath:
    """Where the opened file really lies; asked from the kernel, or resolved again where it cannot be asked."""
    try:
        return Path(f"/proc/self/fd/{handle}").readlink()
    except OSError:
        return PurePath(os.path.realpath(path))


def _open_failure(path: Path, name: str, error: OSError) -> QuarantineError:
    if error.errno == errno.ELOOP:
        return QuarantineError("broken_symlink", f"{name}: the symlink leads to itself; replace it")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if path.is_symlink():
            return QuarantineError("broken_symlink", f"{name}: the symlink's target is gone; replace it")
        return QuarantineError("missing", f"{name}: no such file; restore it or register again")
    return QuarantineError("unreadable", f"{name}: {error.strerror}; make the file readable")


def read_header(data: bytes, name: str) -> ImageHeader:
    """Judge an image by its headers and by whether its data is all there; no pixel is decoded.

    Args:
        data: the whole file.
        name: file name; its extension must match the content, and it opens every message.

    Raises:
        QuarantineError: ``empty_file``, ``not_an_image``, ``wrong_extension``, ``too_large``, ``too_small``,
            ``animated``, ``unsupported_bit_depth``, ``unsupported_color_mode``, ``alpha_channel`` or ``truncated``.
    """
    structure = _judged_structure(data, name)
    width, height = structure.width, structure.height
    if structure.orientation >= 5:
        width, height = height, width
    return ImageHeader(width, height, structure.format)


def decode_rgb(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image to RGB with its EXIF orientation applied.

    Releases the GIL while decoding. Damage is found by the file's structure, by PNG checksums and by the decoder; bit
    errors inside JPEG or TIFF data, which have no checksum, pass.

    Returns:
        uint8 array (height, width, 3), RGB, C-contiguous.

    Raises:
        QuarantineError: as `read_header`; ``truncated`` also when the pixel data is damaged.
    """
    structure = _judged_structure(data, name)
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


def _judged_structure(data: bytes, name: str) -> ImageStructure:
    if not data:
        raise QuarantineError("empty_file", f"{name}: expected an image, found 0 bytes; copy the file again")
    expected_format = FORMAT_BY_EXTENSION.get(PurePath(name).suffix.lower())
    found_format = sniff_format(data)
    if found_format is None:
        foreign = sniff_foreign_format(data)
        if foreign is not None:
            raise QuarantineError(
                "wrong_extension", f"{name}: expected {expected_format}, found {foreign}; convert the file"
            )
        raise QuarantineError("not_an_image", f"{name}: expected {expected_format}, found no image; replace the file")
    if found_format != expected_format:
        raise QuarantineError(
            "wrong_extension", f"{name}: expected {expected_format}, found {found_format}; rename the file"
        )
    try:
        structure = read_structure(data, found_format)
        _judge(structure, name)
        check_complete(data, structure)
    except IncompleteError as error:
        raise QuarantineError("truncated", f"{name}: {error}; copy the file again") from error
    except MalformedError as error:
        raise QuarantineError("not_an_image", f"{name}: {error}; replace the file") from error
    return structure


def _judge(structure: ImageStructure, name: str) -> None:
    size = f"{structure.width}x{structure.height}"
    if structure.width * structure.height > MAX_PIXELS:
        raise QuarantineError("too_large", f"{name}: expected at most {MAX_PIXELS} pixels, found {size}")
    if min(structure.width, structure.height) < MIN_SIDE:
        raise QuarantineError("too_small", f"{name}: expected at least {MIN_SIDE} pixels a side, found {size}")
    if structure.n_frames > 1:
        raise QuarantineError("animated", f"{name}: expected one picture, found {structure.n_frames}; save the first")
    if structure.bits > 8 or (structure.bits != 8 and structure.color == "RGB"):
        raise QuarantineError(
            "unsupported_bit_depth", f"{name}: expected 8 bits per channel, found {structure.bits}; convert the file"
        )
    if structure.color != "RGB":
        raise QuarantineError(
            "unsupported_color_mode", f"{name}: expected 8-bit RGB, found {structure.color}; convert the file"
        )
    if structure.has_alpha:
        raise QuarantineError("alpha_channel", f"{name}: expected RGB, found RGB with alpha; flatten the image")


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
