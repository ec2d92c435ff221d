"""Draw docs/images/rooms.svg: the way of an image, of a label and of a tile through the packages.

Run with ``.venv/bin/python docs/draw_rooms.py`` after changing it.
"""

from pathlib import Path
from xml.sax.saxutils import escape

_PICTURE = Path(__file__).parent / "images" / "rooms.svg"
_WIDTH, _HEIGHT = 1240, 700
_LEFT, _BOX, _GAP = 92, 212, 18
_COLOURS = {
    "file": "#ffffff",
    "landing": "#fde9c9",
    "fundus": "#fbd5d5",
    "labels": "#e6dcf7",
    "imaging": "#d8ecd4",
    "detection": "#d3e5fa",
    "training": "#c3ece8",
}
# Each row: title, then boxes of package, heading and lines of text.
_ROWS = (
    (
        "image",
        (
            ("file", "a photograph", ("below $UVEITIS_RAW", "never written to")),
            ("landing", "landing", ("probe, content hash,", "ledger, batches, splits", "manifest")),
            ("fundus", "fundus", ("ROI mask, crop, colours", "roi_masks", "normalized_crops")),
            ("imaging", "imaging", ("geometry, tiling, PNG", "tiles")),
            ("file", "preproc/, index/", ("image files, metadata,", "an index per batch")),
        ),
    ),
    (
        "label",
        (
            ("file", "a label file", ("boxes or masks,", "in raw pixels")),
            ("landing", "landing", ("matched to its image,", "hashed with it")),
            ("labels", "labels", ("read and checked,", "classes mapped")),
            ("imaging", "imaging", ("projected to the global", "image and to each tile")),
            ("labels", "labels_coco/", ("a COCO file per", "fold and split", "coco_labels")),
        ),
    ),
    (
        "tile",
        (
            ("detection", "detection/data", ("decoded, sampled,", "augmented; read with", "its COCO annotations")),
            ("training", "training", ("one loop for any task;", "here with the network", "of detection/models")),
            ("detection", "detection/checkpoints", ("best weights, lineage,", "runs/", "checkpoint")),
            ("detection", "detection/inference", ("boxes of tiles merged", "per image, preds/", "predictions")),
            ("detection", "detection/evaluation", ("AP, FROC, confusion,", "per image", "evaluation")),
        ),
    ),
)
_ASSETS = {
    *("manifest", "roi_masks", "normalized_crops", "tiles", "coco_labels"),
    *("checkpoint", "predictions", "evaluation"),
}


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" class="{style}">{escape(text)}</text>'


def _bar(y: int, height: int, heading: str, text: str) -> list[str]:
    return [
        f'<rect x="16" y="{y}" width="{_WIDTH - 32}" height="{height}" rx="8" fill="#eceff1" stroke="#90a4ae"/>',
        _text(32, y + 25, heading, "heading"),
        _text(32, y + 48, text, "line"),
    ]


def _row(y: int, title: str, boxes: tuple[tuple[str, str, tuple[str, ...]], ...]) -> list[str]:
    parts = [_text(20, y + 62, title, "title")]
    for number, (package, heading, lines) in enumerate(boxes):
        x = _LEFT + number * (_BOX + _GAP)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_BOX}" height="112" rx="8" fill="{_COLOURS[package]}" stroke="#607d8b"/>'
        )
        parts.append(_text(x + 12, y + 27, heading, "heading"))
        for index, line in enumerate(lines):
            parts.append(_text(x + 12, y + 52 + 22 * index, line, "asset" if line in _ASSETS else "line"))
        if number:
            parts.append(f'<path d="M{x - _GAP + 2},{y + 56} h{_GAP - 9}" class="arrow"/>')
    return parts


def draw() -> str:
    """The picture as SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' role="img">',
        "<title>The way of an image, of a label and of a tile through the packages</title>",
        "<style>text { font-family: Helvetica, Arial, 'DejaVu Sans', sans-serif; fill: #212121 }",
        ".title { font-size: 18px; font-weight: bold } .heading { font-size: 15px; font-weight: bold }",
        ".line { font-size: 14px } .asset { font-size: 14px; font-style: italic; fill: #37474f }",
        ".arrow { stroke: #455a64; stroke-width: 2; fill: none; marker-end: url(#head) }</style>",
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="5" refY="4" orient="auto">'
        '<path d="M0,0 L7,4 L0,8 z" fill="#455a64"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_bar(
            16,
            64,
            "components, orchestration: everything that imports Dagster",
            "assets (in italics), checks, sensors, schedules; each asset calls plain functions of the packages below",
        ),
    ]
    for number, (title, boxes) in enumerate(_ROWS):
        parts += _row(104 + 136 * number, title, boxes)
    parts += _bar(
        512,
        64,
        "stages",
        "resumable batches, for preprocessing and predictions: lock, fingerprints, journal, index, quarantine",
    )
    parts += _bar(
        592,
        64,
        "storage, configuration",
        "names of all files, atomic writes, locks between processes; base of all configuration models",
    )
    parts.append(_text(16, 684, "The third row reads the files of the first two. Names in italics are assets.", "line"))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    _PICTURE.write_text(draw())
