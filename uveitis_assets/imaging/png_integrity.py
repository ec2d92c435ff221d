"""Integrity of PNG files by the checksums that they hold themselves."""

from __future__ import annotations

from isal import isal_zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Length and type before a chunk's data, checksum behind it.
_CHUNK_OVERHEAD = 12


def png_finding(data: bytes | memoryview) -> str | None:
    """Says what is wrong with a PNG file's bytes; None for an intact file.

    Lengths and CRC-32 of the chunks are compared. Every byte of a PNG is covered: a cut file lacks its last chunk, a
    changed byte disagrees with a checksum, a length or the signature. Decoders overlook some of it, e.g. OpenCV fills
    rows that it cannot read with black. Pixels are not decoded (PNG specification, third edition, sections 5.2, 5.3).
    """
    view = memoryview(data)
    if not view:
        return "found an empty file"
    if view[: len(_SIGNATURE)] != _SIGNATURE:
        return "found bytes that do not begin as a PNG"
    position = len(_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + _CHUNK_OVERHEAD + length
        if end > len(view):
            return f"found it cut after {len(view)} bytes"
        kind = bytes(view[position + 4 : position + 8])
        if isal_zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return f"found changed bytes in the chunk at byte {position}"
        position = end
    return None if position == len(view) else f"found {len(view) - position} bytes behind its end"
