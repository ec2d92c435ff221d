"""Postgres' pg_dump, pg_restore and psql, on this machine or in the database's container."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

_CHUNK = 1 << 20
_TAIL = 2000
# The password stays in the container: it is in no argument and no variable of this host.
_AS_DATABASE_USER = 'export PGPASSWORD="$(cat "$POSTGRES_PASSWORD_FILE")"; exec "$@"'


class PostgresToolError(RuntimeError):
    """A program of Postgres failed or is missing; the message quotes it and says what to do."""


@dataclass(frozen=True, slots=True)
class PostgresTools:
    """How to call the programs.

    Args:
        prefix: what comes before a program: nothing on this machine, ``docker exec ...`` for a container.
        database: a connection string of libpq.
    """

    prefix: tuple[str, ...]
    database: str

    @classmethod
    def of_this_machine(cls, url: str) -> Self:
        """Programs on the PATH; the password comes from the URL, PGPASSFILE or ~/.pgpass."""
        return cls((), url)

    @classmethod
    def in_container(cls, container: str, docker: Sequence[str]) -> Self:
        """Programs in the database's container, with the password that is mounted there."""
        prefix = (*docker, "exec", "--interactive", container, "sh", "-c", _AS_DATABASE_USER, "sh")
        return cls(prefix, "postgresql://dagster@127.0.0.1/dagster")

    def dump(self, target: BinaryIO) -> None:
        """Write a dump in Postgres' custom format: one snapshot, while others read and write.

        Raises:
            PostgresToolError: pg_dump failed or is missing.
        """
        with self._start(self._command("pg_dump", "--format=custom", "--no-owner", "--no-privileges")) as process:
            if process.stdout is None:
                raise AssertionError("it was asked for its output")
            shutil.copyfileobj(process.stdout, target, _CHUNK)
            self._finish(process, "pg_dump")

    def query(self, statement: str) -> str:
        """Rows of a statement, values separated by ``|``.

        Raises:
            PostgresToolError: the database does not answer, or refuses the statement.
        """
        command = self._command("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", statement)
        with self._start(command) as process:
            answer = process.stdout.read() if process.stdout else b""
            self._finish(process, "psql")
        return answer.decode().strip()

    def restore(self, dump: Path, before: str) -> None:
        """Carry out ``before`` and the dump in one transaction: all of it, or nothing where anything fails.

        Raises:
            PostgresToolError: the dump cannot be read, or the database refused a statement.
        """
        read = [*self.prefix, "pg_restore", "--no-owner", "--no-privileges", "--file=-"]
        apply = self._command("psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1")
        with (
            dump.open("rb") as source,
            self._start(read, stdin=source) as reader,
            self._start(apply, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as writer,
        ):
            if reader.stdout is None or writer.stdin is None:
                raise AssertionError("both were asked for")
            try:
                writer.stdin.write(f"BEGIN;\n{before}\n".encode())
                shutil.copyfileobj(reader.stdout, writer.stdin, _CHUNK)
                # Only a whole dump is committed. Killing psql is no way to stop it: in a container it goes on, and
                # takes the end of its input for the end of the work.
                if reader.wait() == 0:
                    writer.stdin.write(b"\nCOMMIT;\n")
                writer.stdin.close()
            except BrokenPipeError:
                # psql gave up: its own message says why.
                with suppress(BrokenPipeError):
                    writer.stdin.close()
                reader.kill()
                self._finish(writer, "psql")
            self._finish(reader, "pg_restore")
            self._finish(writer, "psql")

    def _command(self, program: str, *options: str) -> list[str]:
        return [*self.prefix, program, *options, f"--dbname={self.database}"]

    def _start(
        self, command: Sequence[str], stdin: BinaryIO | int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        try:
            # Never ask for a password: nobody answers.
            environment = os.environ | {"PGCONNECT_TIMEOUT": "20", "LC_ALL": "C"}
            return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment)
        except FileNotFoundError:
            raise PostgresToolError(
                f"{command[0]}: found no such program; install Docker's client, or postgresql-client for a database "
                "that is reached by its URL"
            ) from None

    def _finish(self, process: subprocess.Popen[bytes], program: str) -> None:
        said = (process.stderr.read() if process.stderr else b"").decode(errors="replace").strip()
        if process.wait() != 0:
            raise PostgresToolError(
                f"{program} ended with {process.returncode}: {said[-_TAIL:] or 'no message'}; see that the database "
                "runs (docker/compose.sh ps postgres) and that its disk has space"
            )
