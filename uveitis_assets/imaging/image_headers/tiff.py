"""Reads the directories of a TIFF file, to see whether all its data is there.

Pillow opens 16-bit RGB as RGB, and a quarter of the files that are cut off, and tells only when pixels are decoded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from uveitis_assets.imaging.image_headers.structure import ColorModel, ImageStructure, IncompleteError, MalformedError

_MAX_PAGES = 64
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}


@dataclass(frozen=True, slots=True)
class _FieldWidths:
    """Byte order and field widths of a classic or big TIFF."""

    order: str
    offset: str  # struct code of an offset
    count: str  # struct code of the number of directory entries
    entry_bytes: int
    first_directory: int


def _field_widths(data: bytes) -> _FieldWidths:
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"+\0", b"\0+"):
        (first,) = struct.unpack_from(order + "Q", data, 8)
        return _FieldWidths(order, "Q", "Q", 20, first)
    (first,) = struct.unpack_from(order + "I", data, 4)
    return _FieldWidths(order, "I", "H", 12, first)


def _directory(data: bytes, widths: _FieldWidths, offset: int) -> tuple[dict[int, tuple[int, int, int]], int]:
    """Entries of a directory, tag -> (type, count, offset of the values), and the next one's offset."""
    if offset + struct.calcsize(widths.count) > len(data):
        raise IncompleteError("a TIFF directory lies beyond the end of the file")
    (n_entries,) = struct.unpack_from(widths.order + widths.count, data, offset)
    position = offset + struct.calcsize(widths.order + widths.count)
    inline_bytes = struct.calcsize(widths.order + widths.offset)
    if position + n_entries * widths.entry_bytes + inline_bytes > len(data):
        raise IncompleteError("a TIFF directory is cut off")
    entries = {}
    for index in range(n_entries):
        entry = position + index * widths.entry_bytes
        tag, kind, count = struct.unpack_from(widths.order + "HH" + widths.offset, data, entry)
        values = entry + widths.entry_bytes - inline_bytes
        if kind in _TYPES and count * struct.calcsize(widths.order + _TYPES[kind]) > inline_bytes:
            (values,) = struct.unpack_from(widths.order + widths.offset, data, values)
        entries[tag] = (kind, count, values)
    (following,) = struct.unpack_from(widths.order + widths.offset, data, position + n_entries * widths.entry_bytes)
    return entries, following


def _values(data: bytes, widths: _FieldWidths, entries: dict[int, tuple[int, int, int]], tag: int) -> tuple[int, ...]:
    if tag not in entries:
        return ()
    kind, count, offset = entries[tag]
    if kind not in _TYPES:
        raise MalformedError(f"TIFF tag {tag} has type {kind}, expected an integer type")
    if offset + count * struct.calcsize(widths.order + _TYPES[kind]) > len(data):
        raise IncompleteError(f"the values of TIFF tag {tag} lie beyond the end of the file")
    return struct.unpack_from(f"{widths.order}{count}{_TYPES[kind]}", data, offset)


def read_tiff(data: bytes) -> ImageStructure:
    """Read the first directory and count the pages.

    Raises:
        IncompleteError: a directory or its values are cut off.
        MalformedError: they make no sense.
        struct.error: the file ends before the first directory.
    """
    widths = _field_widths(data)
    entries, following = _directory(data, widths, widths.first_directory)

    def value(tag: int, default: int) -> int:
        values = _values(data, widths, entries, tag)
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
    bits = max(_values(data, widths, entries, 258) or (1,))
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
        n_frames=1 + _count_further_pages(data, widths, following),
        data_start=0,
        # Segments are checked one by one; the best TIFF compression (deflate, LZMA) stays below this.
        max_pixels_in_data=len(data) * 7000,
    )


def _count_further_pages(data: bytes, widths: _FieldWidths, offset: int) -> int:
    """Count full pages behind the first; previews and masks (NewSubfileType bits 0 and 2) are not pages."""
    pages = 0
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < _MAX_PAGES:
        seen.add(offset)
        entries, offset = _directory(data, widths, offset)
        kinds = _values(data, widths, entries, 254)
        if not (kinds and kinds[0] & 0b101):
            pages += 1
    return pages


def check_tiff(data: bytes, structure: ImageStructure) -> None:
    """Check that all strips or tiles that the first directory names lie inside the file.

    Raises:
        IncompleteError: some do not, or are not named.
    """
    widths = _field_widths(data)
    entries, _ = _directory(data, widths, widths.first_directory)

    def values(tag: int) -> tuple[int, ...]:
        return _values(data, widths, entries, tag)

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
