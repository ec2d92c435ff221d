"""What the engine proxy passes on, with docker's own client on one side and a fake engine on the other."""

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, NotFound

from uveitis_assets.deployment.engine_proxy import EngineProxy
from uveitis_assets_tests.patience import patience

OURS, THEIRS = "a" * 64, "b" * 64
LABELS = {OURS: {"uveitis/deployment": "clinic"}, THEIRS: {"com.docker.compose.project": "other"}}


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers like an engine with two containers, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.asked: list[str] = []
        super().__init__(str(path), _Answers)


class _Answers(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        self.server.asked.append(f"GET {self.path}")
        if self.path.endswith("/version"):
            self._send(200, {"ApiVersion": "1.41", "Version": "20.10.24"})
            return
        if self.path.endswith("/_ping"):
            self._answer(b"OK")
            return
        container = self.path.split("/")[-2]
        if container in LABELS:
            self._send(200, {"Id": container, "Config": {"Labels": LABELS[container], "Tty": False}, "State": {}})
        else:
            self._send(404, {"message": "no such container"})

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        self.send_response(204)
        self.end_headers()

    def _send(self, status: int, content: dict[str, Any]) -> None:
        self._answer(json.dumps(content).encode(), status)

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "engine.sock") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> Iterator[docker.DockerClient]:
    # A file that an earlier proxy left is replaced.
    (tmp_path / "proxy.sock").touch()
    with EngineProxy(tmp_path / "engine.sock", tmp_path / "proxy.sock", "clinic") as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        through = docker.DockerClient(base_url=f"unix://{tmp_path / 'proxy.sock'}", timeout=patience(10))
        engine.asked.clear()
        yield through
        through.close()
        proxy.shutdown()


def test_the_launcher_finds_the_engine_reachable(client: docker.DockerClient, engine: Engine) -> None:
    assert client.ping()
    assert engine.asked == ["GET /v1.41/_ping"]


def test_a_run_of_the_deployment_is_stopped(client: docker.DockerClient, engine: Engine) -> None:
    client.containers.get(OURS).stop(timeout=7)
    assert engine.asked[-1] == f"POST /v1.41/containers/{OURS}/stop?t=7"
    client.containers.get(OURS).stop()
    assert engine.asked[-1] == f"POST /v1.41/containers/{OURS}/stop"


def test_a_container_that_is_gone_is_not_found(client: docker.DockerClient) -> None:
    with pytest.raises(NotFound):
        client.containers.get("c" * 64)


def test_other_containers_are_neither_shown_nor_stopped(client: docker.DockerClient, engine: Engine) -> None:
    with pytest.raises(APIError, match="only stops containers of clinic"):
        client.containers.get(THEIRS)
    with pytest.raises(APIError, match="only stops containers of clinic"):
        client.api.stop(THEIRS)
    assert not any(asked.startswith("POST") for asked in engine.asked)


@pytest.mark.parametrize(
    "request_to",
    [
        lambda client: client.containers.list(),
        lambda client: client.images.list(),
        lambda client: client.info(),
        lambda client: client.api.kill(OURS),
        lambda client: client.api.remove_container(OURS),
        lambda client: client.api.exec_create(OURS, ["sh"]),
        lambda client: client.api.logs(OURS),
        lambda client: client.api.create_container("x", ["sh"]),
        lambda client: client.api.inspect_container(f"{OURS}/json?x=/../../images"),
    ],
)
def test_nothing_else_passes(client: docker.DockerClient, engine: Engine, request_to: Any) -> None:
    with pytest.raises(APIError):
        request_to(client)
    assert [asked for asked in engine.asked if "/json" not in asked or "images" in asked] == []


def test_an_engine_that_is_away_is_named(client: docker.DockerClient, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "engine.sock").unlink()
    with pytest.raises(APIError, match="the engine does not answer"):
        client.api.version()
