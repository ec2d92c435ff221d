"""Pictures in the UI: a small JPEG as Markdown metadata."""

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

from uveitis_assets.imaging.preview_jpeg import MAX_JPEG_BYTES

if TYPE_CHECKING:
    pass


def picture(jpeg: bytes, title: str) -> dg.MarkdownMetadataValue:
    """Markdown that shows a JPEG in the UI.

    Raises:
        ValueError: the picture is larger than what every event of a partition may weigh.
    """
    if len(jpeg) > MAX_JPEG_BYTES:
        raise ValueError(f"{title}: expected at most {MAX_JPEG_BYTES} bytes of JPEG, found {len(jpeg)}")
    return dg.MetadataValue.md(f"![{title}](data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})")


def format_counts(counts: Mapping[str, int]) -> dg.JsonMetadataValue:
    return dg.MetadataValue.json(dict(counts))


def format_listing(lines: list[str], limit: int = 300) -> dg.MarkdownMetadataValue:
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return dg.MetadataValue.md("\n".join(f"- {line}" for line in [*lines[:limit], *more]) or "none")
