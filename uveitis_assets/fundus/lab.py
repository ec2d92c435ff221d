"""RGB to 8-bit OpenCV LAB and back, several times faster than cv2.cvtColor on large images, with the same result.

The conversions are functions of 24-bit colours, and a fundus photograph of twelve million pixels holds about a
hundred thousand colours: tables of all colours, made once per process, answer from the core's cache. They cost a third
of a second and 128 MB, so they are made only once a process has converted enough pixels. It knows nothing of fundus
images.
"""

from __future__ import annotations

import threading

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# Tables pay for themselves after about this many pixels: three ultra-widefield images.
_PIXELS_BEFORE_TABLES = 36_000_000
_N_COLORS = 1 << 24
_CHUNK = 1 << 18


class LabConverter:
    """Conversions of bands of rows; one instance may be shared by threads.

    LAB is kept in four channels, (H, W, 4) uint8 with L, a, b and 0, so that a pixel is one 32-bit word and the index
    of its colour.
    """

    def __init__(self, pixels_before_tables: int = _PIXELS_BEFORE_TABLES) -> None:
        self._pixels_left = pixels_before_tables
        self._tables: tuple[NDArray[np.uint32], NDArray[np.uint32]] | None = None
        self._lock = threading.Lock()

    def announce(self, n_pixels: int) -> None:
        """Say how many pixels are about to be converted; enough of them make the tables worth while."""
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
            words = _words(np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA), dtype=np.uint8))
            # The opaque fourth channel makes a signed word the colour's index counted from the table's end.
            np.take(self._tables[0], words.view(np.int32).astype(np.intp), out=_words(out), mode="wrap")

    def to_rgb(self, lab: Pixels, out: Pixels) -> None:
        """Convert (H, W, 4) LAB, whose fourth channel is 0, into (H, W, 3) RGB."""
        if self._tables is None:
            cv2.cvtColor(cv2.cvtColor(lab, cv2.COLOR_RGBA2RGB), cv2.COLOR_LAB2RGB, dst=out)
        else:
            words = np.empty(lab.shape[:2], dtype="<u4")
            np.take(self._tables[1], _words(lab).astype(np.intp), out=words, mode="wrap")
            cv2.cvtColor(words.view(np.uint8).reshape(lab.shape), cv2.COLOR_RGBA2RGB, dst=out)


def _words(pixels: Pixels) -> NDArray[np.uint32]:
    return pixels.view("<u4")[..., 0]


def _color_table(conversion: int) -> NDArray[np.uint32]:
    """Result of a 3-channel conversion for each colour: first channel in the lowest byte, of index and of value."""
    table = np.empty(_N_COLORS, dtype="<u4")
    for start in range(0, _N_COLORS, _CHUNK):
        colors = np.arange(start, start + _CHUNK, dtype="<u4").view(np.uint8).reshape(1, _CHUNK, 4)
        converted = cv2.cvtColor(cv2.cvtColor(colors, cv2.COLOR_RGBA2RGB), conversion)
        table[start : start + _CHUNK] = _words(np.asarray(cv2.cvtColor(converted, cv2.COLOR_RGB2RGBA), dtype=np.uint8))
    table &= _N_COLORS - 1
    return table


lab_converter = LabConverter()
"""The process's converter: its tables are shared by all batches."""
