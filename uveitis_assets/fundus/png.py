"""PNG encoding of 8-bit images, several times faster than the encoders of OpenCV and Pillow at a similar size.

Rows pass the UP filter in numpy and ISA-L's deflate in blocks, so that no second copy of the image exists and the
work happens outside the interpreter lock. It decodes nothing: any PNG reader does.
"""

from __future__ import annotations

import struct

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

# Measured on ultra-widefield and regular fundus photographs: level 1 is 1.2x as large as the best level of zlib at a
# tenth of its time; level 0 saves 5 % of the time for 15 % more bytes, level 3 costs 1.6x for more bytes. Fundus
# images are smooth down the columns: UP is smaller and faster than SUB, adaptive choice is not worth its time.
_DEFLATE_LEVEL = 1
_FILTER_UP = 2
# A block of filtered rows stays in the core's cache between numpy and ISA-L.
_BLOCK_BYTES = 1 << 19
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2}


class PngEncoder:
    """Encoder that takes an image's rows from top to bottom; one per image and thread.

    Args:
        width: pixels of a row.
        height: rows that will be added altogether.
        channels: 1 (grey) or 3 (RGB).
    """

    def __init__(self, width: int, height: int, channels: int) -> None:
        if channels not in _COLOR_TYPES:
            raise ValueError(f"expected 1 or 3 channels, found {channels}")
        if width < 1 or height < 1:
            raise ValueError(f"expected at least one pixel, found {width}x{height}")
        self._row_bytes = width * channels
        self._rows_left = height
        header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
        self._parts = [_SIGNATURE + _chunk(b"IHDR", header)]
        self._block_rows = max(1, min(height, _BLOCK_BYTES // (self._row_bytes + 1)))
        self._block = np.empty((self._block_rows, self._row_bytes + 1), dtype=np.uint8)
        self._block[:, 0] = _FILTER_UP
        self._above = np.zeros(self._row_bytes, dtype=np.uint8)
        self._deflate = isal_zlib.compressobj(_DEFLATE_LEVEL)
        self._compressed: list[bytes] = []

    def add_rows(self, rows: NDArray[np.uint8]) -> None:
        """Add the next rows: (n, width, 3) RGB or (n, width), uint8; pixels of a row adjacent in memory."""
        flat = rows.reshape(len(rows), -1)
        if flat.dtype != np.uint8 or flat.shape[1] != self._row_bytes:
            raise ValueError(f"expected rows of {self._row_bytes} bytes (uint8), found {flat.shape[1]} {flat.dtype}")
        if len(flat) > self._rows_left:
            raise ValueError(f"expected at most {self._rows_left} more rows, found {len(flat)}")
        self._rows_left -= len(flat)
        for start in range(0, len(flat), self._block_rows):
            part = flat[start : start + self._block_rows]
            block = self._block[: len(part)]
            above = self._above if start == 0 else flat[start - 1]
            np.subtract(part[0], above, out=block[0, 1:])
            np.subtract(part[1:], part[:-1], out=block[1:, 1:])
            self._compressed.append(self._deflate.compress(block))
        if len(flat):
            self._above[:] = flat[-1]

    def finish(self) -> bytes:
        """Return the PNG file's bytes."""
        if self._rows_left:
            raise ValueError(f"expected {self._rows_left} more rows before the end of the image")
        self._compressed.append(self._deflate.flush())
        checksum = isal_zlib.crc32(b"IDAT")
        for part in self._compressed:
            checksum = isal_zlib.crc32(part, checksum)
        size = sum(map(len, self._compressed))
        self._parts.append(struct.pack(">I4s", size, b"IDAT"))
        self._parts.extend(self._compressed)
        self._parts.append(struct.pack(">I", checksum) + _chunk(b"IEND", b""))
        self._compressed = []
        return b"".join(self._parts)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image as PNG, losslessly.

    Args:
        image: (H, W, 3) RGB or (H, W) grey, uint8; a view into a larger image is fine.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"expected uint8 of shape (H, W, 3) or (H, W), found {image.dtype} {image.shape}")
    encoder = PngEncoder(image.shape[1], image.shape[0], 1 if image.ndim == 2 else 3)
    encoder.add_rows(image)
    return encoder.finish()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(kind + data))
