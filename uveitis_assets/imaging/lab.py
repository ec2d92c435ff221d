"""RGB to 8-bit OpenCV LAB and back, as cv2.cvtColor does but several times faster.

The conversions are functions of 24-bit colours, and a fundus photograph of twelve million pixels holds about a
hundred thousand colours: tables of all colours, made once per process, answer from the core's cache. They cost a third
of a second and 128 MB, so they are made only once a process has converted enough pixels.
"""

from __future__ import annotations

import sys
import threading

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.imaging.reusable_buffers import thread_buffer

Pixels = NDArray[np.uint8]

# Tables pay for themselves after about this many pixels: three ultra-widefield images.
_PIXELS_BEFORE_TABLES = 36_000_000
_N_COLORS = 1 << 24
_CHUNK = 1 << 18
_LOWEST_BYTE = 0 if sys.byteorder == "little" else -1


class LabConverter:
    """Conversions of bands of rows; one instance may be shared by threads.

    LAB is kept in four channels, (H, W, 4) uint8 with L, a, b and 0, so that a pixel is one 32-bit number, the index
    of its colour.
    """

    def __init__(self, pixels_before_tables: int = _PIXELS_BEFORE_TABLES) -> None:
        self._pixels_left = pixels_before_tables
        self._tables: tuple[NDArray[np.uint32], NDArray[np.uint32]] | None = None
        self._lock = threading.Lock()

    @property
    def has_tables(self) -> bool:
        """Whether the tables of all colours are made."""
        return self._tables is not None

    def announce(self, n_pixels: int) -> None:
        """Count pixels about to be converted; the tables are made once there were enough of them."""
        if self._tables is None:
            with self._lock:
                self._pixels_left -= n_pixels
                if self._pixels_left < 0 and self._tables is None:
                    self._tables = _color_table(cv2.COLOR_RGB2LAB), _color_table(cv2.COLOR_LAB2RGB)

    def to_lab(self, rgb: Pixels, out: Pixels) -> None:
        """Convert (H, W, 3) RGB into (H, W, 4) LAB."""
        if self._tables is None:
            cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), cv2.COLOR_RGB2RGBA, dst=out)
            out[..., 3] = 0
        else:
            rgba = thread_buffer("lab.packed", out.shape)
            cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA, dst=rgba)
            # The opaque fourth channel makes a signed number the colour's index counted from the table's end.
            index = _index(_packed(rgba).view(np.int32))
            np.take(self._tables[0], index, out=_packed(out), mode="wrap")

    def to_rgb(self, lab: Pixels, out: Pixels, luminance: Pixels | None = None) -> None:
        """Convert (H, W, 4) LAB, whose fourth channel is 0, into (H, W, 3) RGB.

        ``luminance``, (H, W), takes the place of LAB's first channel.
        """
        if self._tables is None:
            three_channels = cv2.cvtColor(lab, cv2.COLOR_RGBA2RGB)
            if luminance is not None:
                cv2.insertChannel(luminance, three_channels, 0)
            cv2.cvtColor(three_channels, cv2.COLOR_LAB2RGB, dst=out)
        else:
            index = _index(_packed(lab))
            if luminance is not None:
                index.view(np.uint8).reshape(*index.shape, -1)[..., _LOWEST_BYTE] = luminance
            rgba = thread_buffer("lab.packed", lab.shape)
            np.take(self._tables[1], index, out=_packed(rgba), mode="wrap")
            cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB, dst=out)


def copy_luminance(lab: Pixels, out: Pixels) -> None:
    """Copy L of (H, W, 4) LAB into (H, W)."""
    # The lowest byte of each number, at three times the speed of cv2.extractChannel (measured).
    np.copyto(out, _packed(lab), casting="unsafe")


def _packed(pixels: Pixels) -> NDArray[np.uint32]:
    return pixels.view("<u4")[..., 0]


def _index(packed: NDArray[np.uint32] | NDArray[np.int32]) -> NDArray[np.intp]:
    """Numbers in the type that np.take would convert them to, in memory that serves band after band."""
    n_bytes = np.dtype(np.intp).itemsize
    index = thread_buffer("lab.index", (*packed.shape, n_bytes)).view(np.intp)[..., 0]
    np.copyto(index, packed)
    return index


def _color_table(conversion: int) -> NDArray[np.uint32]:
    """Result of a 3-channel conversion for each colour, first channel in the lowest byte."""
    table = np.empty(_N_COLORS, dtype="<u4")
    for start in range(0, _N_COLORS, _CHUNK):
        colors = np.arange(start, start + _CHUNK, dtype="<u4").view(np.uint8).reshape(1, _CHUNK, 4)
        converted = cv2.cvtColor(cv2.cvtColor(colors, cv2.COLOR_RGBA2RGB), conversion)
        table[start : start + _CHUNK] = _packed(np.asarray(cv2.cvtColor(converted, cv2.COLOR_RGB2RGBA), dtype=np.uint8))
    table &= _N_COLORS - 1
    return table


lab_converter = LabConverter()
"""The process's converter: its tables are shared by all batches."""
