"""What a JPEG, PNG, BMP or TIFF file says about itself: size, colour, orientation, and whether its data is all there.

Parsed from the bytes by hand, because Pillow hides 16-bit RGB, warns or raises about large images from within
``open`` and keeps process-wide state, and OpenCV reports nothing before decoding. No pixel is decoded here and no
judgement is made: which images are accepted is decided in `image_file`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

ImageFormat = Literal["JPEG", "PNG", "BMP", "TIFF"]
ColorModel = Literal["RGB", "grey", "palette", "CMYK", "LAB", "other"]

_MAX_TIFF_PAGES = 64
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
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


class IncompleteError(ValueError):
    """The file ends before what its headers promise."""


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


def sniff_format(data: bytes) -> ImageFormat | None:
    """Name the format from the first bytes; None when it is none of the four."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG_SIGNATURE):
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
                return _read_jpeg(data)
            case "PNG":
                return _read_png(data)
            case "BMP":
                return _read_bmp(data)
            case "TIFF":
                return _read_tiff(data)
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
                # Inside entropy-coded data FF is always followed by 00 or a restart marker, and thumbnails lie
                # before the first scan: an end marker behind it is the image's own (or that of a later picture).
                if data.rfind(b"\xff\xd9") < structure.data_start:
                    raise IncompleteError("the JPEG end marker is missing")
            case "PNG":
                _check_png_chunks(data)
            case "BMP":
                pass  # max_pixels_in_data is exact
            case "TIFF":
                _check_tiff_segments(data, structure)
    except (struct.error, IndexError) as error:
        raise IncompleteError(f"the {structure.format} structure is cut off after {len(data)} bytes") from error


def png_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """List (type, start of the body, length) of every chunk up to and including IEND.

    Raises:
        IncompleteError: the file ends before IEND.
    """
    chunks = []
    position, end = len(_PNG_SIGNATURE), len(data)
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


# JPEG -----------------------------------------------------------------------------------------------------


def _read_jpeg(data: bytes) -> ImageStructure:
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
            orientation = _exif_orientation(data[position + 8 : position + length])
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


def _exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 from an EXIF block; 1 when it is absent or unreadable, as image viewers do."""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (n_entries,) = struct.unpack_from(order + "H", exif, offset)
        for index in range(n_entries):
            tag, kind, count = struct.unpack_from(order + "HHI", exif, offset + 2 + 12 * index)
            if tag == 0x0112 and count == 1 and kind in (3, 4):
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, offset + 10 + 12 * index)
                return int(value) if 1 <= value <= 8 else 1
    except (struct.error, KeyError):
        pass
    return 1


# PNG ------------------------------------------------------------------------------------------------------


def _read_png(data: bytes) -> ImageStructure:
    if data[12:16] != b"IHDR":
        raise MalformedError(f"the first PNG chunk is {data[12:16]!r}, expected IHDR")
    width, height, bits, color_type = struct.unpack_from(">IIBB", data, 16)
    colors: dict[int, ColorModel] = {0: "grey", 2: "RGB", 3: "palette", 4: "grey", 6: "RGB"}
    if color_type not in colors or width == 0 or height == 0:
        raise MalformedError(f"the PNG header says {width}x{height} pixels, colour type {color_type}")
    orientation, n_frames, has_transparency, data_start = 1, 1, False, len(data)
    position = len(_PNG_SIGNATURE)
    # A chunk cut off ends the walk: check_complete reports it after the size has been judged.
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
            orientation = _exif_orientation(data[body : body + length])
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


def _check_png_chunks(data: bytes) -> None:
    if not any(kind == b"IDAT" for kind, _, _ in png_chunks(data)):
        raise IncompleteError("the PNG file holds no image data")


# BMP ------------------------------------------------------------------------------------------------------


def _read_bmp(data: bytes) -> ImageStructure:
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


# TIFF -----------------------------------------------------------------------------------------------------

_TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}


@dataclass(frozen=True, slots=True)
class _TiffLayout:
    """Byte order and field widths of a classic or big TIFF."""

    order: str
    offset: str  # struct code of an offset
    count: str  # struct code of the number of directory entries
    entry_bytes: int
    first_directory: int


def _tiff_layout(data: bytes) -> _TiffLayout:
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"+\0", b"\0+"):
        (first,) = struct.unpack_from(order + "Q", data, 8)
        return _TiffLayout(order, "Q", "Q", 20, first)
    (first,) = struct.unpack_from(order + "I", data, 4)
    return _TiffLayout(order, "I", "H", 12, first)


def _tiff_directory(data: bytes, layout: _TiffLayout, offset: int) -> tuple[dict[int, tuple[int, int, int]], int]:
    """Entries of one directory as tag -> (type, count, offset of the values), and the next directory's offset."""
    if offset + struct.calcsize(layout.count) > len(data):
        raise IncompleteError("a TIFF directory lies beyond the end of the file")
    (n_entries,) = struct.unpack_from(layout.order + layout.count, data, offset)
    position = offset + struct.calcsize(layout.order + layout.count)
    inline_bytes = struct.calcsize(layout.order + layout.offset)
    if position + n_entries * layout.entry_bytes + inline_bytes > len(data):
        raise IncompleteError("a TIFF directory is cut off")
    entries = {}
    for index in range(n_entries):
        entry = position + index * layout.entry_bytes
        tag, kind, count = struct.unpack_from(layout.order + "HH" + layout.offset, data, entry)
        values = entry + layout.entry_bytes - inline_bytes
        if kind in _TIFF_TYPES and count * struct.calcsize(layout.order + _TIFF_TYPES[kind]) > inline_bytes:
            (values,) = struct.unpack_from(layout.order + layout.offset, data, values)
        entries[tag] = (kind, count, values)
    (following,) = struct.unpack_from(layout.order + layout.offset, data, position + n_entries * layout.entry_bytes)
    return entries, following


def _tiff_values(
    data: bytes, layout: _TiffLayout, entries: dict[int, tuple[int, int, int]], tag: int
) -> tuple[int, ...]:
    if tag not in entries:
        return ()
    kind, count, offset = entries[tag]
    if kind not in _TIFF_TYPES:
        raise MalformedError(f"TIFF tag {tag} has type {kind}, expected an integer type")
    if offset + count * struct.calcsize(layout.order + _TIFF_TYPES[kind]) > len(data):
        raise IncompleteError(f"the values of TIFF tag {tag} lie beyond the end of the file")
    return struct.unpack_from(f"{layout.order}{count}{_TIFF_TYPES[kind]}", data, offset)


def _read_tiff(data: bytes) -> ImageStructure:
    layout = _tiff_layout(data)
    entries, following = _tiff_directory(data, layout, layout.first_directory)

    def value(tag: int, default: int) -> int:
        values = _tiff_values(data, layout, entries, tag)
        return values[0] if values else default

    width, height = value(256, 0), value(257, 0)
    if width <= 0 or height <= 0:
        raise MalformedError(f"the TIFF directory says {width}x{height} pixels")
    photometric = value(262, -1)
    colors: dict[int, ColorModel] = {
        0: "grey",
        1: "grey",
        2: "RGB",
        3: "palette",
        5: "CMYK",
        6: "RGB",  # YCbCr, converted by the decoder
        8: "LAB",
        9: "LAB",
        10: "LAB",
    }
    n_samples = value(277, 1)
    bits = max(_tiff_values(data, layout, entries, 258) or (1,))
    is_float = value(339, 1) == 3
    color = colors.get(photometric, "other")
    if color == "RGB" and n_samples < 3:
        raise MalformedError(f"the TIFF directory says RGB with {n_samples} samples per pixel")
    orientation = value(274, 1)
    return ImageStructure(
        format="TIFF",
        width=width,
        height=height,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        color=color,
        bits=32 if is_float else bits,
        has_alpha=color == "RGB" and n_samples > 3,
        n_frames=1 + _count_further_pages(data, layout, following),
        data_start=0,
        # Segments are checked one by one; the best TIFF compression (deflate, LZMA) stays below this.
        max_pixels_in_data=len(data) * 7000,
    )


def _count_further_pages(data: bytes, layout: _TiffLayout, offset: int) -> int:
    """Count full pages behind the first; previews and masks (NewSubfileType bits 0 and 2) are not pages."""
    pages = 0
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < _MAX_TIFF_PAGES:
        seen.add(offset)
        entries, offset = _tiff_directory(data, layout, offset)
        kinds = _tiff_values(data, layout, entries, 254)
        if not (kinds and kinds[0] & 0b101):
            pages += 1
    return pages


def _check_tiff_segments(data: bytes, structure: ImageStructure) -> None:
    layout = _tiff_layout(data)
    entries, _ = _tiff_directory(data, layout, layout.first_directory)

    def values(tag: int) -> tuple[int, ...]:
        return _tiff_values(data, layout, entries, tag)

    offsets = values(324) or values(273)
    byte_counts = values(325) or values(279)
    if not offsets:
        raise IncompleteError("the TIFF directory names no image data")
    n_samples = (values(277) or (1,))[0]
    planes = n_samples if (values(284) or (1,))[0] == 2 else 1
    if 324 in entries:
        tile_width, tile_height = values(322)[0], values(323)[0]
        n_expected = -(-structure.width // max(1, tile_width)) * -(-structure.height // max(1, tile_height))
    else:
        rows = min((values(278) or (structure.height,))[0], structure.height)
        n_expected = -(-structure.height // max(1, rows))
    if len(offsets) < n_expected * planes:
        raise IncompleteError(f"the TIFF directory names {len(offsets)} of {n_expected * planes} data segments")
    is_raw = (values(259) or (1,))[0] == 1
    raw_bytes = structure.width * structure.height * n_samples * structure.bits // 8
    if is_raw and 324 not in entries and (not byte_counts or sum(byte_counts) < raw_bytes):
        # Writers that leave the counts out or wrong: the rows follow the first offset.
        byte_counts = (raw_bytes,) if len(offsets) == 1 else byte_counts
        if sum(byte_counts) < raw_bytes:
            raise IncompleteError(f"the TIFF data segments hold {sum(byte_counts)} of {raw_bytes} bytes")
    end = max((start + count for start, count in zip(offsets, byte_counts, strict=False)), default=0)
    if end > len(data) or 0 in offsets[: n_expected * planes]:
        raise IncompleteError(f"the TIFF data ends at byte {end}, the file at {len(data)}")
