"""Asks a service of the deployment itself whether it works; for health checks of its container.

Run with ``python -m uveitis_assets.deployment.service_health web|daemon|engine-proxy [SECONDS]``: exit status 0 or 1,
and the reason on standard error. The seconds are how long a daemon may be silent. A process that is there may be
frozen, and its port may answer without the database.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

TIMEOUT_S = 15.0
# Daemons note a heartbeat every 30 s; one that starts many containers or reads a large folder is late.
SILENCE_S = 300.0
_WEB = "http://127.0.0.1:3000"
_PROXY = Path("/engine/stop.sock")


class UnhealthyError(Exception):
    """The service does not work; the message says what it did not do."""


def check_web(address: str = _WEB) -> None:
    """Let the web server read the newest run, which needs the database.

    Raises:
        UnhealthyError: no answer, or an error as answer.
    """
    query = json.dumps({"query": "{ runsOrError(limit: 1) { __typename } }"}).encode()
    request = urllib.request.Request(  # noqa: S310 - ours
        f"{address}/graphql", query, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - ours
            found = json.load(answer)
    except (OSError, ValueError) as error:
        raise UnhealthyError(f"the web server does not answer: {error}") from error
    if (found.get("data") or {}).get("runsOrError", {}).get("__typename") != "Runs":
        raise UnhealthyError("the web server cannot read runs")


def check_daemon(instance: dg.DagsterInstance, silence_s: float) -> None:
    """Look at the heartbeats that the daemons note in the database.

    Raises:
        UnhealthyError: a daemon that the instance needs has noted none for ``silence_s`` seconds.
    """
    silent = []
    for name, status in sorted(instance.get_daemon_statuses().items()):
        beat = status.last_heartbeat
        age = None if beat is None else time.time() - beat.timestamp
        if status.required and (age is None or age > silence_s):
            silent.append(f"{name} ({'never seen' if age is None else f'{age:.0f} s ago'})")
    if silent:
        raise UnhealthyError(f"expected heartbeats within {silence_s:g} s, found {', '.join(silent)}")


def check_engine_proxy(path: Path = _PROXY) -> None:
    """Ask the engine through its proxy whether it is there.

    Raises:
        UnhealthyError: no answer, or another than the engine's.
    """
    connection = http.client.HTTPConnection("engine", timeout=TIMEOUT_S)
    try:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(TIMEOUT_S)
            wire.connect(str(path))
            connection.sock = wire
            connection.request("GET", "/_ping")
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise UnhealthyError(f"{path}: the proxy does not answer: {error}") from error
    if status != http.HTTPStatus.OK:
        raise UnhealthyError(f"{path}: expected the engine's answer 200, found {status}")


def _check_own_daemon(silence_s: float) -> None:
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        check_daemon(instance, silence_s)


_CHECKS: dict[str, Callable[[float], None]] = {
    "web": lambda _: check_web(),
    "daemon": _check_own_daemon,
    "engine-proxy": lambda _: check_engine_proxy(),
}


def main(arguments: Sequence[str]) -> int:
    """Check the named service."""
    if len(arguments) not in (1, 2) or arguments[0] not in _CHECKS:
        print(f"expected one of {', '.join(_CHECKS)}, found {' '.join(arguments) or 'nothing'}", file=sys.stderr)
        return 2
    try:
        _CHECKS[arguments[0]](float(arguments[1]) if len(arguments) == 2 else SILENCE_S)
    except UnhealthyError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
