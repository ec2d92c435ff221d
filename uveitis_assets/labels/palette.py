"""One colour per lesion category, for overlays of labels and of predictions."""

from __future__ import annotations

from uveitis_assets.imaging.drawing import Color

# Light, saturated colours that stand out on dark red and green fundus images and from each other (RGB).
PALETTE: tuple[Color, ...] = (
    (255, 225, 25),
    (255, 250, 150),
    (240, 50, 230),
    (255, 255, 255),
    (255, 120, 60),
    (170, 255, 195),
    (0, 170, 255),
    (250, 190, 212),
    (145, 120, 255),
    (200, 200, 200),
    (255, 70, 110),
    (188, 246, 12),
    (255, 216, 177),
    (0, 210, 160),
    (70, 240, 240),
    (220, 160, 255),
    (120, 200, 90),
    (255, 165, 0),
    (120, 160, 255),
    (230, 140, 140),
)


def category_color(category_id: int) -> Color:
    """RGB colour of a category; ids from 1, after the last colour from the start again."""
    return PALETTE[(category_id - 1) % len(PALETTE)]
