"""Asks a service of the deployment itself whether it works: for health checks, and for alerts.

A process that is there may be frozen, and its port may answer without the database. Run with
``python -m uveitis_assets.deployment.service_health web|code-server|daemon|engine-proxy [SECONDS]``: exit status 0 or
1, and the reason on standard error. The seconds are how long a daemon may be silent.
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
_CODE_SERVER = "127.0.0.1:4000"
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


def check_code_server(address: str = _CODE_SERVER) -> None:
    """Send the code server at host:port gRPC's health request.

    Raises:
        UnhealthyError: no answer, or that it does not serve.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="DagsterApi")
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise UnhealthyError(f"the code server does not answer: {error}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnhealthyError("the code server answers that it does not serve")


def silent_daemons(instance: dg.DagsterInstance, silence_s: float = SILENCE_S) -> dict[str, float | None]:
    """Daemons that the instance needs without a recent heartbeat, and the time of their last one.

    Recent is within ``silence_s`` seconds; the time is in seconds since 1970, None where there was none. Dagster
    itself calls a daemon healthy for half an hour after its last heartbeat.
    """
    last = {
        name: status.last_heartbeat.timestamp if status.last_heartbeat else None
        for name, status in sorted(instance.get_daemon_statuses().items())
        if status.required
    }
    oldest = time.time() - silence_s
    return {name: timestamp for name, timestamp in last.items() if timestamp is None or timestamp < oldest}


def check_daemon(instance: dg.DagsterInstance, silence_s: float) -> None:
    """Look at the heartbeats that the daemons note in the database.

    Raises:
        UnhealthyError: a daemon that the instance needs has noted none for ``silence_s`` seconds.
    """
    silent = [
        f"{name} ({'never seen' if last is None else f'{time.time() - last:.0f} s ago'})"
        for name, last in silent_daemons(instance, silence_s).items()
    ]
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
    "code-server": lambda _: check_code_server(),
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
