"""Size and times of files, to see cheaply that a file may hold other bytes than were read once.

Written into the ledger as text, ``size:mtime:ctime:hash``, where one row holds those of several files.
"""

from __future__ import annotations

import os

Stamp = tuple[int, int, int]


def file_stamp(path: str) -> Stamp | None:
    """Size in bytes, times of last write and last change in ns; None where there is no file."""
    try:
        state = os.stat(path)  # noqa: PTH116  a Path object costs as much as the call
    except OSError:
        return None
    return stamp_of(state)


def stamp_of(state: os.stat_result) -> Stamp:
    """The stamp of a file that was asked for its state."""
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def stamp_text(stamp: Stamp, digest: str) -> str:
    """The stamp with the content hash of the bytes that were read."""
    size, mtime_ns, ctime_ns = stamp
    return f"{size}:{mtime_ns}:{ctime_ns}:{digest}"


def is_stamp_of(text: str, stamp: Stamp | None) -> bool:
    """Say whether a file that was registered with the text still has the size and times of then."""
    return stamp is not None and text.startswith(stamp_text(stamp, ""))


def stamped_size(text: str) -> int:
    """Size in bytes of the registered file."""
    return int(text.partition(":")[0])


def stamped_hash(text: str) -> str:
    """Content hash of the registered bytes; empty where the file could not be read or was not looked at."""
    return "" if text.startswith(":") else text.rpartition(":")[2]
