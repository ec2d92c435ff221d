"""Reads the orientation from an EXIF block."""

from __future__ import annotations

import struct


def exif_orientation(exif: bytes) -> int:
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
