"""Pictures in the UI: a small JPEG as Markdown metadata."""

import base64

import dagster as dg

from uveitis_assets.preview_jpeg import MAX_JPEG_BYTES


def picture(jpeg: bytes, title: str) -> dg.MarkdownMetadataValue:
    """Markdown that shows a JPEG in the UI.

    Raises:
        ValueError: the picture is larger than what every event of a partition may weigh.
    """
    if len(jpeg) > MAX_JPEG_BYTES:
        raise ValueError(f"{title}: expected at most {MAX_JPEG_BYTES} bytes of JPEG, found {len(jpeg)}")
    return dg.MetadataValue.md(f"![{title}](data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})")
