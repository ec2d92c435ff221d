"""One COCO file while it is built, with its numbering and totals.

Entries are kept as text: dictionaries of some hundred thousand annotations take ten times the memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uveitis_assets.storage.files import write_bytes


class CocoFile:
    """Collects images and annotations in order; ids start at 1."""

    def __init__(self, categories: list[dict[str, Any]]) -> None:
        self._categories = categories
        self._images: list[bytes] = []
        self._annotations: list[bytes] = []
        self._area = 0.0
        self.annotations_per_category: Counter[int] = Counter()

    @property
    def n_images(self) -> int:
        return len(self._images)

    @property
    def n_annotations(self) -> int:
        return len(self._annotations)

    @property
    def avg_box_area(self) -> float:
        """Mean area of the annotations' boxes, px²; 0 without annotations."""
        return self._area / len(self._annotations) if self._annotations else 0.0

    def add_image(self, entry: Mapping[str, Any]) -> int:
        """Append an image and return its id."""
        number = len(self._images) + 1
        self._images.append(_text({"id": number, **entry}))
        return number

    def add_annotation(self, entry: Mapping[str, Any]) -> None:
        """Append an annotation, which gets the next id; ``bbox`` and ``category_id`` go into the totals."""
        self._annotations.append(_text({"id": len(self._annotations) + 1, **entry}))
        _, _, width, height = entry["bbox"]
        self._area += width * height
        self.annotations_per_category[entry["category_id"]] += 1

    def write(self, path: Path) -> None:
        """Write the file atomically, one entry per line."""
        parts = [
            b'{"images": [\n',
            b",\n".join(self._images),
            b'\n],\n"annotations": [\n',
            b",\n".join(self._annotations),
            b'\n],\n"categories": [\n',
            b",\n".join(_text(category) for category in self._categories),
            b"\n]}\n",
        ]
        write_bytes(path, b"".join(parts))


def _text(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
