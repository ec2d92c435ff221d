"""How the tiles that a network learned, or is shown, are cut and scaled, and whether both are alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any, Self

from uveitis_assets.imaging.geometry import ImageFrames

# Larger differences of scale are more than those between photographs of one lane.
_TOLERATED_RATIO = 1.25


@dataclass(frozen=True, slots=True)
class TileGeometry:
    """Frame and scale of tiles.

    Attributes:
        frame: ``global`` or ``native``, as ``ImageFrames.frame``; both, joined by ``and``, where images differ.
        global_tile: the global image is one more tile beside those of the native crop.
        tile_px: longer side of the cut tiles, px of their frame; the median.
        input_px: side of the network's input that a tile's longer side is brought to.
        global_size: side of the global image, px; the median.
    """

    frame: str
    global_tile: bool
    tile_px: int
    input_px: int
    global_size: int

    @classmethod
    def of_images(cls, frames: Iterable[ImageFrames], input_px: int) -> Self | None:
        """That of images' tiles; None where there are none."""
        of_images = list(frames)
        cut = [tile for image in of_images for tile in image.tiles if not tile.is_global]
        if not cut:
            return None
        return cls(
            frame=" and ".join(sorted({image.frame for image in of_images})),
            global_tile=any(tile.is_global for image in of_images for tile in image.tiles),
            tile_px=median_low(max(tile.width, tile.height) for tile in cut),
            input_px=input_px,
            global_size=median_low(image.global_size for image in of_images),
        )

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Self:
        """Read back what ``plain`` gave."""
        return cls(
            frame=str(value["frame"]),
            global_tile=bool(value["global_tile"]),
            tile_px=int(value["tile_px"]),
            input_px=int(value["input_px"]),
            global_size=int(value["global_size"]),
        )

    def plain(self) -> dict[str, Any]:
        """As in a lineage."""
        return asdict(self)

    @property
    def px_per_input_px(self) -> float:
        """Px of the tiles' frame per px of the network's input."""
        return self.tile_px / self.input_px

    def __str__(self) -> str:
        """In words, for messages and metadata."""
        frame = f"{self.frame} tiles of {self.tile_px} px"
        of_image = f" of a global image of {self.global_size} px" if "global" in self.frame else ""
        whole = " and the global image" if self.global_tile else ""
        return f"{frame}{of_image} ({self.px_per_input_px:.3g} px per input px){whole}"

    def is_like(self, other: TileGeometry) -> bool:
        """Whether tiles show the same part of an image at nearly the same scale."""
        sizes = [(self.px_per_input_px, other.px_per_input_px)]
        if "global" in self.frame:
            sizes.append((self.global_size, other.global_size))
        return ((self.frame, self.global_tile) == (other.frame, other.global_tile)) and all(
            max(pair) <= _TOLERATED_RATIO * min(pair) for pair in sizes
        )


def tile_finding(name: str, learned: TileGeometry | None, frames: Iterable[ImageFrames]) -> str | None:
    """Message where images' tiles are unlike those that a checkpoint learned; None where they are alike.

    Args:
        name: of the checkpoint.
        learned: as in its lineage; None where that does not say, as of earlier versions: nothing is compared.
        frames: of the images that it is shown.
    """
    shown = None if learned is None else TileGeometry.of_images(frames, learned.input_px)
    if learned is None or shown is None or learned.is_like(shown):
        return None
    return (
        f"{name} learned {learned}, and is shown {shown}: lesions look other than those it learned; give the lanes the "
        "same tiling and global_tile, or train on such tiles"
    )
