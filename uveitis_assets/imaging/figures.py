"""Figures as PNG bytes that depend on the drawing alone: no pyplot state, dates or versions.

The same drawing gives the same bytes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import cv2
import numpy as np

from uveitis_assets.imaging.preview_jpeg import encode_within

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 110


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of so many inches (width, height), laid out so that nothing overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG of 110 px per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def png_as_jpeg(png: bytes) -> bytes:
    """Encode a PNG again as JPEG, small enough for an event.

    Raises:
        ValueError: the bytes are no PNG.
    """
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError(f"expected a PNG, found {len(png)} bytes that do not decode")
    return encode_within(np.asarray(pixels, np.uint8))
