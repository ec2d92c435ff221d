"""A Postgres server for tests, which can be killed and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from uveitis_assets_tests.patience import patience

_UP_S = 30


def find_server() -> Path | None:
    """Folder of the newest server's programs: Debian keeps them off the PATH."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    # As numbers, because 10 comes after 9.6.
    newest = max(debian, key=lambda found: [int(number) for number in found.parts[-3].split(".")], default=None)
    found = newest or shutil.which("postgres")
    return Path(found).parent if found else None


class Server:
    """A server that listens on a socket in ``folder`` only."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.folder = folder
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        # Postgres refuses root.
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://dagster@/postgres?host={self.folder}"

    def make(self) -> None:
        options = ["--auth=trust", "--username=dagster", "--no-sync", "--locale=C", "--encoding=UTF8"]
        command = [str(self._programs / "initdb"), "--pgdata", str(self.folder / "data"), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self._user)

    def start(self) -> None:
        """Start it and wait until it answers. What is committed outlives its death, though not the machine's."""
        # A server that was just killed may hold its memory for a moment, and the next one then gives up.
        deadline = time.monotonic() + patience(_UP_S)
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            if self._process is None or self._process.poll() is not None:
                self._launch()
            time.sleep(0.02)

    def _launch(self) -> None:
        settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"]
        folders = ["-D", str(self.folder / "data"), "-k", str(self.folder)]
        command = [str(self._programs / "postgres"), *folders, *settings]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._user)

    def _answers(self) -> bool:
        command = [str(self._programs / "pg_isready"), "--quiet", "--host", str(self.folder)]
        return subprocess.run(command, check=False).returncode == 0

    def kill(self) -> None:
        """Kill all of its processes at once, as the end of a container does."""
        if self._process is None or self._process.poll() is not None:
            return
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


@contextmanager
def serve(programs: Path) -> Iterator[Server]:
    """A server with an empty database; in a folder of its own, because a socket's path must be short."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = Server(programs, folder)
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)
