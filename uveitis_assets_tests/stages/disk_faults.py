"""Kills and failing writes at chosen steps of a run: between a file and its name, inside a journal's line, at an index.

They stand in for a disk and a kernel, below everything that the package calls.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from uveitis_assets.storage.append_only import AppendOnlyFile
from uveitis_assets_tests.patience import patience


class KillSteps:
    """Counts the steps after which a killed process leaves something else behind; kills at one of them.

    Only for a process of its own: it changes what files do for all that follows.
    """

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at
        self._replace_files()
        self._append_lines()

    def _step(self, before_death: Callable[[], Any] = lambda: None) -> None:
        self.count += 1
        if self.count == self._kill_at:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)

    def _replace_files(self) -> None:
        replace, unlink = Path.replace, Path.unlink

        def counted_replace(path: Path, target: Path) -> Path:
            # The temporary file is complete, or torn, and not in its place yet.
            self._step(lambda: os.truncate(path, path.stat().st_size // 2))
            result = replace(path, target)
            self._step()
            return result

        def counted_unlink(path: Path, missing_ok: bool = False) -> None:
            if path.exists():
                self._step()
            unlink(path, missing_ok)

        Path.replace, Path.unlink = counted_replace, counted_unlink  # type: ignore[assignment,method-assign]

    def _append_lines(self) -> None:
        append, begin = AppendOnlyFile.append, AppendOnlyFile.__init__
        places: dict[int, Path] = {}

        def counted_append(journal: AppendOnlyFile, line: bytes) -> None:
            self._step(lambda: tear_off(places[id(journal)]))
            append(journal, line)
            self._step()

        def counted_begin(journal: AppendOnlyFile, path: Path) -> None:
            begin(journal, path)
            places[id(journal)] = path
            self._step()

        AppendOnlyFile.append, AppendOnlyFile.__init__ = counted_append, counted_begin  # type: ignore[method-assign]


def _killed_at(kill_at: int | None, report: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    steps = KillSteps(kill_at)
    work(*arguments)
    report.put(steps.count)


def count_steps(processes: ForkServerContext, work: Callable[..., None], *arguments: Any) -> int:
    """Number of steps of undisturbed work, in a process of its own."""
    report = processes.SimpleQueue()
    process = processes.Process(target=_killed_at, args=(None, report, work, arguments))
    process.start()
    process.join(patience(60))
    assert process.exitcode == 0
    found: int = report.get()
    return found


def kill(processes: ForkServerContext, kill_at: int, work: Callable[..., None], *arguments: Any) -> None:
    """Do the work in a process of its own and kill it at a step."""
    report = processes.SimpleQueue()
    process = processes.Process(target=_killed_at, args=(kill_at, report, work, arguments))
    process.start()
    process.join(patience(60))
    assert process.exitcode == -signal.SIGKILL, f"step {kill_at} of {work}: expected a killed process"


def spread(n_kills: int, n_steps: int) -> list[int]:
    """At most so many steps, evenly spread over all of them."""
    n_kills = min(n_kills, n_steps)
    return [1 + number * n_steps // n_kills for number in range(n_kills)]


def tear_off(journal: Path) -> None:
    """Append the part of a line that reached the disk before the end."""
    with journal.open("ab") as stream:
        stream.write(b'\n{"image_id": "lane::image00", "row": {"ima')


def fill_disk(patch: pytest.MonkeyPatch, full: Callable[[Path], bool]) -> None:
    """Let no file come into its place for which ``full`` holds, and no line into such a journal."""
    replace, write = Path.replace, os.write

    def failing_replace(path: Path, target: Path) -> Path:
        if full(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    def failing_write(handle: int, data: bytes) -> int:
        path = Path(f"/proc/self/fd/{handle}")
        # Half of the line fits.
        return write(handle, data[: len(data) // 2] if full(path.readlink()) else data)

    patch.setattr(Path, "replace", failing_replace)
    patch.setattr(os, "write", failing_write)


def make_read_only(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Refuse to make and to remove files below a folder; also for the superuser, whom permissions do not stop."""
    make, unlink = os.open, Path.unlink

    def refusing_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(path).is_relative_to(root):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return make(path, flags, *arguments, **options)

    def refusing_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.exists() and path.is_relative_to(root):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        unlink(path, missing_ok)

    patch.setattr(os, "open", refusing_open)
    patch.setattr(Path, "unlink", refusing_unlink)
