"""A Postgres of one's own, which can be killed, and a wire to it that breaks where it is told to."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from uveitis_assets_tests.patience import patience

_SOCKET = ".s.PGSQL.5432"
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
        self._starting: threading.Thread | None = None
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
        if self._starting is not None:
            self._starting.join()
        if self._process is None or self._process.poll() is not None:
            return
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def crash(self) -> None:
        """Kill it, and have it started again meanwhile."""
        self.kill()
        self._starting = threading.Thread(target=self.start)
        self._starting.start()


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


class Moment(Enum):
    """When the wire breaks: before the server hears the statement, or once it has carried it out and answers."""

    BEFORE = "before"
    AFTER = "after"


class Wire:
    """Carries statements to a server and answers back.

    Attributes:
        breaks: Decides for each statement whether the wire breaks at it.
        also: What else happens when it breaks, before the client is told.
    """

    def __init__(self, server: Server) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="wire-"))
        self.breaks: Callable[[str], Moment | None] = lambda _statement: None
        self.also: Callable[[], None] = lambda: None
        self._server = server.folder / _SOCKET
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.folder / _SOCKET))
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://dagster@/postgres?host={self.folder}"

    def close(self) -> None:
        # Wakes the thread that waits for connections.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        shutil.rmtree(self.folder)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """Carry one connection until one of both sides, or the wire, ends it: the other side is then left as well."""
        with client, socket.socket(socket.AF_UNIX) as server:
            try:
                server.connect(str(self._server))
                with client.makefile("rb") as said, server.makefile("rb") as answered:
                    server.sendall(_message(said))
                    client.sendall(_answer(answered))
                    while self._carry_one(said, server, answered, client):
                        pass
            except OSError:
                return

    def _carry_one(self, said: BinaryIO, server: socket.socket, answered: BinaryIO, client: socket.socket) -> bool:
        kind = said.read(1)
        message = _message(said)
        moment = self.breaks(message[4:-1].decode()) if kind == b"Q" else None
        if moment is Moment.BEFORE:
            self.also()
            return False
        server.sendall(kind + message)
        answer = _answer(answered)
        if moment is Moment.AFTER:
            self.also()
            return False
        client.sendall(answer)
        return bool(answer)


def _message(stream: BinaryIO) -> bytes:
    """A message of Postgres' protocol: its length and its content; nothing at the end of the stream."""
    length = stream.read(4)
    return length + stream.read(int.from_bytes(length, "big") - 4) if length else b""


def _answer(stream: BinaryIO) -> bytes:
    """All messages until the server is ready for the next statement, or has ended."""
    answer = b""
    while kind := stream.read(1):
        answer += kind + _message(stream)
        if kind == b"Z":
            break
    return answer
