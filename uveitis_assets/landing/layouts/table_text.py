"""Finds out what the bytes of a table are: a spreadsheet program's file, or text and its encoding."""

from __future__ import annotations

import codecs

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FOREIGN_FORMATS = (
    (b"PK\x03\x04", "a workbook (.xlsx, .ods or another ZIP file)"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a workbook (.xls)"),
    (b"%PDF-", "a PDF file"),
    (b"PAR1", "a Parquet file"),
)
_PROBED_BYTES = 1024


def foreign_table_format(data: bytes) -> str:
    """Name of the file format, with its article, where the bytes are no text; empty where they may be."""
    return next((name for start, name in _FOREIGN_FORMATS if data.startswith(start)), "")


def decode_table(data: bytes) -> str:
    """Decode a table: by its byte-order mark, UTF-16 without one, UTF-8, else cp1252 or Latin-1.

    Never fails: what is no text gives characters in which no column is found.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "") or _utf16_without_mark(data)
    if encoding:
        return data.decode(encoding, errors="replace").removeprefix("\ufeff")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _utf16_without_mark(data: bytes) -> str:
    """The byte order in which most characters are ASCII, or empty: half of the bytes are zero then."""
    head = data[:_PROBED_BYTES]
    half = len(head) // 2
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > 0.7 * half and even == 0:
        return "utf-16-le"
    if even > 0.7 * half and odd == 0:
        return "utf-16-be"
    return ""
