"""Metadata that the UI shows as pictures, tables and lists."""

import base64
from collections.abc import Mapping, Sequence

import dagster as dg

from uveitis_assets.imaging.preview_jpeg import MAX_JPEG_BYTES
from uveitis_assets.messages import listing


def picture(jpeg: bytes, title: str) -> dg.MarkdownMetadataValue:
    """Markdown that shows a JPEG in the UI.

    Raises:
        ValueError: the picture is larger than what every event of a partition may weigh.
    """
    if len(jpeg) > MAX_JPEG_BYTES:
        raise ValueError(f"{title}: expected at most {MAX_JPEG_BYTES} bytes of JPEG, found {len(jpeg)}")
    return dg.MetadataValue.md(f"![{title}](data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})")


def format_counts(counts: Mapping[str, int]) -> dg.JsonMetadataValue:
    """Counts by name as JSON."""
    return dg.MetadataValue.json(dict(counts))


def format_listing(lines: Sequence[str], limit: int = 300) -> dg.MarkdownMetadataValue:
    """Lines as a Markdown list, ``none`` for no lines."""
    return dg.MetadataValue.md("\n".join(f"- {line}" for line in listing(lines, limit)) or "none")
