"""Locks between processes, as locked files: they end with their process.

They are ``flock`` locks. A lock on a shared file system holds between machines where the file system's locks do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file, which is made where it is missing; waits for its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make_locked_file(path: Path) -> BinaryIO:
    """Make a file that is locked as soon as it has its name; the lock lasts until the handle is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = path.with_name(f".{path.stem}.{os.getpid()}")
    handle = unnamed.open("ab")
    fcntl.flock(handle, fcntl.LOCK_EX)
    unnamed.rename(path)
    return handle


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Take the lock of an existing file without waiting; False where there is no file or it is held."""
    try:
        # For writing: network file systems grant no exclusive lock otherwise.
        handle = path.open("r+b")
    except FileNotFoundError:
        yield False
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = False
        else:
            taken = True
        yield taken
