"""PNG encoding of 8-bit images, several times faster than OpenCV and Pillow at a similar size.

Rows pass the UP filter in numpy and ISA-L's deflate in blocks, so that no second copy of the image exists and the
work happens outside the interpreter lock.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

# Measured on ultra-widefield and regular fundus photographs: level 1 takes a quarter of the time of OpenCV's default
# at 0.7 to 1.1 times its size. Level 0 makes 13 to 28 % more bytes for 0 to 10 % less time, level 2 the same as level
# 1, level 3 more bytes in up to 1.9 times the time. Fundus images are smooth down the columns: UP gives mostly smaller
# files than SUB and always sooner.
_DEFLATE_LEVEL = 1
_FILTER_UP = 2
# ISA-L (seen in 2.32.1) begins a stream with a value that it never set: where it notes the third byte is up to chance,
# so that equal images got unequal files, one in ten thousand (its igzip_icf_body_h1_gr_bt.asm, `.write_first_byte`).
# Streams that are flushed after so few bytes begin in another of its routines, which has no such fault.
_FLUSHED_BYTES = 16
# A block of filtered rows stays in the core's cache between numpy and ISA-L.
BLOCK_BYTES = 1 << 19
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2


def encode_png(image: NDArray[np.uint8], *, block_bytes: int = BLOCK_BYTES) -> bytes:
    """Encode an image as PNG, losslessly.

    Args:
        image: (H, W, 3) RGB or (H, W) grey, uint8; a view into a larger image is fine.
        block_bytes: filtered rows compressed at a time.

    Raises:
        ValueError: another shape or dtype, or no pixels.
    """
    if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2 or image.size == 0:
        raise ValueError(f"expected uint8 of shape (H, W, 3) or (H, W), found {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, _GREY if image.ndim == 2 else _RGB, 0, 0, 0)
    deflate = isal_zlib.compressobj(_DEFLATE_LEVEL)
    compressed: list[bytes] = []
    for block in _filtered_blocks(image.reshape(height, -1), block_bytes):
        rest = block.reshape(-1)
        if not compressed:
            compressed += deflate.compress(rest[:_FLUSHED_BYTES]), deflate.flush(isal_zlib.Z_SYNC_FLUSH)
            rest = rest[_FLUSHED_BYTES:]
        compressed.append(deflate.compress(rest))
    compressed.append(deflate.flush())
    checksum = isal_zlib.crc32(b"IDAT")
    for part in compressed:
        checksum = isal_zlib.crc32(part, checksum)
    return b"".join(
        [
            _SIGNATURE,
            _chunk(b"IHDR", header),
            struct.pack(">I4s", sum(map(len, compressed)), b"IDAT"),
            *compressed,
            struct.pack(">I", checksum),
            _chunk(b"IEND", b""),
        ]
    )


def _filtered_blocks(rows: NDArray[np.uint8], block_bytes: int) -> Iterator[NDArray[np.uint8]]:
    """Rows (H, bytes of a row) through the UP filter, each behind its filter byte."""
    n_rows = max(1, min(len(rows), block_bytes // (rows.shape[1] + 1)))
    buffer = np.empty((n_rows, rows.shape[1] + 1), dtype=np.uint8)
    buffer[:, 0] = _FILTER_UP
    for start in range(0, len(rows), n_rows):
        part = rows[start : start + n_rows]
        block = buffer[: len(part)]
        if start == 0:
            block[0, 1:] = part[0]
        else:
            np.subtract(part[0], rows[start - 1], out=block[0, 1:])
        np.subtract(part[1:], part[:-1], out=block[1:, 1:])
        yield block


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(kind + data))
