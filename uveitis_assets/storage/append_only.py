"""Files of lines that several processes append to.

Only the last line can be incomplete, after a kill or on a full disk.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class AppendOnlyFile:
    """A file, made where it is missing, to which lines are appended with one system call each.

    Raises:
        OSError: a line did not fit on the disk; names the file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, line: bytes) -> None:
        """Append a line; without line breaks of its own."""
        # A line break before it, too: otherwise an incomplete line before it would run into this one.
        data = b"\n" + line + b"\n"
        if os.write(self._handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._handle)
