"""Health checks of the deployment's services: what they take for an answer."""

import json
import socketserver
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from uveitis_assets.deployment.monitoring.conditions import unseen_daemons
from uveitis_assets.deployment.service_health import (
    UnhealthyError,
    check_daemon,
    check_engine_proxy,
    check_web,
    main,
)
from uveitis_assets_tests.deployment.message_servers import RUNS, answering, serving


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (RUNS, 500, "does not answer"),
        (b"<html>", 200, "does not answer"),
        (json.dumps({"data": {"runsOrError": {"__typename": "PythonError"}}}).encode(), 200, "cannot read runs"),
        (json.dumps({"errors": [{"message": "no database"}], "data": None}).encode(), 200, "cannot read runs"),
    ],
)
def test_a_web_server_that_cannot_read_runs_is_unhealthy(body: bytes, status: int, message: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), answering(body, status))
    with serving(server), pytest.raises(UnhealthyError, match=message):
        check_web(f"http://127.0.0.1:{server.server_port}")


def test_a_web_server_that_reads_runs_is_healthy_until_it_is_gone() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), answering(RUNS))
    address = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        check_web(address)
    with pytest.raises(UnhealthyError, match="does not answer"):
        check_web(address)


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (502, False)])
def test_the_engines_proxy_is_healthy_where_the_engine_answers(tmp_path: Path, status: int, healthy: bool) -> None:
    path = tmp_path / "stop.sock"
    handler: Any = answering(b"OK", status)
    handler.address_string = lambda _: "local"
    with serving(UnixServer(str(path), handler)):
        if healthy:
            check_engine_proxy(path)
        else:
            with pytest.raises(UnhealthyError, match="found 502"):
                check_engine_proxy(path)
    with pytest.raises(UnhealthyError, match="does not answer"):
        check_engine_proxy(path)


def _instance(**ages_s: float | None) -> Any:
    """An instance whose daemons noted their heartbeats so many seconds ago; None: never."""
    statuses = {
        name: SimpleNamespace(
            required=name != "BACKFILL",
            last_heartbeat=None if age is None else SimpleNamespace(timestamp=time.time() - age),
        )
        for name, age in ages_s.items()
    }
    return SimpleNamespace(get_daemon_statuses=lambda: statuses)


def test_a_daemon_without_a_recent_heartbeat_is_unhealthy() -> None:
    check_daemon(_instance(SENSOR=20, SCHEDULER=20, BACKFILL=9000), 300)
    with pytest.raises(UnhealthyError, match=r"within 300 s, found SENSOR \(90\d s ago\)$"):
        check_daemon(_instance(SENSOR=900, SCHEDULER=20), 300)
    with pytest.raises(UnhealthyError, match=r"SENSOR \(never seen\)"):
        check_daemon(_instance(SENSOR=None), 300)


def test_alerts_name_a_daemon_as_soon_as_its_health_check_does() -> None:
    (found,) = unseen_daemons(_instance(SENSOR=900, SCHEDULER=20))
    assert found.text.startswith("daemon SENSOR is silent, last seen ")


def test_an_instance_whose_daemons_never_ran_is_unhealthy(instance: dg.DagsterInstance) -> None:
    with pytest.raises(UnhealthyError, match=r"SCHEDULER \(never seen\)"):
        check_daemon(instance, 300)


def test_the_command_takes_the_services_that_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["postgres"]) == 2
    assert "expected one of web, code-server, daemon, engine-proxy, found postgres" in capsys.readouterr().err
