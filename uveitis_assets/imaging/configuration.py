"""Configuration of the tiling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uveitis_assets.configuration import Configuration


class TilingConfiguration(Configuration):
    """Global image and tiles."""

    global_size: int = Field(1024, ge=64, le=8192, description="Side of the square global image, px")
    tile_size: int = Field(768, ge=32, le=4096, description="Side of a tile, px")
    overlap: float = Field(0.25, ge=0.0, lt=0.95, description="Nominal overlap of neighbouring tiles, share of a side")
    frame: Literal["global", "native"] = Field(
        "global", description="Cut tiles from the global image (compatible) or from the crop at native resolution"
    )
