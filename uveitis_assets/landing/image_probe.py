"""Accepts landed image files: 8-bit RGB JPEG, PNG, BMP or TIFF with one picture of a sensible size.

Decided from the headers and from whether the data is all there; no pixel is decoded. Everything else raises
`QuarantineError` with a reason.
"""

from __future__ import annotations

from pathlib import PurePath

from uveitis_assets.imaging.image_headers import (
    ImageFormat,
    ImageStructure,
    IncompleteError,
    MalformedError,
    check_complete,
    read_structure,
    sniff_foreign_format,
    sniff_format,
)
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import SampleFacts

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


def is_image_name(name: str) -> bool:
    """Say whether the file name carries one of the image extensions, in any case."""
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in FORMAT_BY_EXTENSION


def probe_image(data: bytes, name: str) -> SampleFacts:
    """Read the size of a usable image from its headers, after EXIF orientation; no pixel is decoded.

    Args:
        data: the whole file.
        name: file name; its extension must match the content, and it opens every message.

    Raises:
        QuarantineError: ``empty_file``, ``not_an_image``, ``wrong_extension``, ``too_large``, ``too_small``,
            ``animated``, ``unsupported_bit_depth``, ``unsupported_color_mode``, ``alpha_channel`` or ``truncated``.
    """
    structure = accepted_structure(data, name)
    if structure.orientation >= 5:
        return SampleFacts(structure.height, structure.width)
    return SampleFacts(structure.width, structure.height)


def accepted_structure(data: bytes, name: str) -> ImageStructure:
    """Read the headers of a usable image; raises what `probe_image` raises."""
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
        _check_usable(structure, name)
        check_complete(data, structure)
    except IncompleteError as error:
        raise QuarantineError("truncated", f"{name}: {error}; copy the file again") from error
    except MalformedError as error:
        raise QuarantineError("not_an_image", f"{name}: {error}; replace the file") from error
    return structure


def _check_usable(structure: ImageStructure, name: str) -> None:
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
