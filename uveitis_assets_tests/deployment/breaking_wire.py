"""A wire between a client and a Postgres server that breaks at one statement."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import BinaryIO

_SOCKET = ".s.PGSQL.5432"


class Moment(Enum):
    """When the wire breaks: before the server receives the statement, or once it has carried it out and answers."""

    BEFORE = "before"
    AFTER = "after"


class Wire:
    """Passes statements to a server and answers back.

    Args:
        server: folder of the server's socket.
        folder: where the wire listens; it is made, and its path has to be short.
        breaks: decides for each statement whether the wire breaks at it.
    """

    def __init__(self, server: Path, folder: Path, breaks: Callable[[str], Moment | None]) -> None:
        folder.mkdir()
        self.url = f"postgresql+psycopg2://dagster@/postgres?host={folder}"
        self._server = server / _SOCKET
        self._breaks = breaks
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / _SOCKET))
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._socket.accept()
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """Carry one connection until one of both sides, or the wire, ends it: the other side is then left as well."""
        with client, socket.socket(socket.AF_UNIX) as server:
            try:
                server.connect(str(self._server))
                with client.makefile("rb") as requests, server.makefile("rb") as answers:
                    server.sendall(_message(requests))
                    client.sendall(_answer(answers))
                    while self._carry_one(requests, server, answers, client):
                        pass
            except OSError:
                return

    def _carry_one(self, requests: BinaryIO, server: socket.socket, answers: BinaryIO, client: socket.socket) -> bool:
        kind = requests.read(1)
        message = _message(requests)
        moment = self._breaks(message[4:-1].decode()) if kind == b"Q" else None
        if moment is Moment.BEFORE:
            return False
        server.sendall(kind + message)
        answer = _answer(answers)
        if moment is Moment.AFTER:
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
