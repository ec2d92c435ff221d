"""A proxy of the Docker engine's socket that only stops containers of this deployment.

Dagster terminates a run from the web server, so the web server has to reach the engine. The engine's own socket would
give it control of the whole host. The proxy passes on four requests: whether the engine answers, its version, the state
of a container, and stopping a container, the latter two only for containers with the deployment's label. It listens on
a socket file, which only the web server mounts.

Run with ``python -m uveitis_assets.deployment.engine_proxy ENGINE_SOCKET OWN_SOCKET DEPLOYMENT``.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

# The label's name is the launcher's; importing it would load Dagster into this small process.
_LABEL = "uveitis/deployment"
_ALWAYS_ALLOWED = re.compile(r"(/v[0-9.]+)?/(_ping|version)")
_CONTAINER = re.compile(
    r"(?P<version>(/v[0-9.]+)?)/containers/(?P<id>[0-9a-f]{12,64})/(?P<what>json|stop(\?t=[0-9]+)?)"
)
# Stopping waits for the container, by default ten seconds.
_TIMEOUT_S = 300.0


class EngineProxy(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Server that passes the allowed requests on.

    Args:
        engine: the engine's socket.
        listen: where to listen; a socket file that an earlier proxy left is replaced.
        deployment: label of the containers that may be looked at and stopped.
    """

    daemon_threads = True

    def __init__(self, engine: Path, listen: Path, deployment: str) -> None:
        self.engine = engine
        self.deployment = deployment
        listen.unlink(missing_ok=True)
        super().__init__(str(listen), _Handler)
        listen.chmod(0o600)


class _EngineConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Handler(BaseHTTPRequestHandler):
    server: EngineProxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        container = _CONTAINER.fullmatch(self.path)
        if _ALWAYS_ALLOWED.fullmatch(self.path) or self._may_look_at(container):
            self._pass_on("GET")
        else:
            self._refuse()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        container = _CONTAINER.fullmatch(self.path)
        if container and container["what"] != "json" and self._is_of_deployment(container):
            self._pass_on("POST")
        else:
            self._refuse()

    def _may_look_at(self, container: re.Match[str] | None) -> bool:
        return container is not None and container["what"] == "json" and self._is_of_deployment(container)

    def _is_of_deployment(self, container: re.Match[str]) -> bool:
        status, _, body = self._ask("GET", f"{container['version']}/containers/{container['id']}/json")
        if status != http.HTTPStatus.OK:
            # It does not exist: the engine's own answer, which is passed on, tells no more than that.
            return status == http.HTTPStatus.NOT_FOUND
        return bool((json.loads(body)["Config"]["Labels"] or {}).get(_LABEL) == self.server.deployment)

    def _pass_on(self, method: str) -> None:
        status, content_type, body = self._ask(method, self.path)
        self._answer(status, content_type, body)

    def _ask(self, method: str, path: str) -> tuple[int, str, bytes]:
        connection = _EngineConnection(self.server.engine)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type", "application/json"), response.read()
        except OSError as error:
            message = json.dumps({"message": f"the engine does not answer: {error}"})
            return http.HTTPStatus.BAD_GATEWAY, "application/json", message.encode()
        finally:
            connection.close()

    def _refuse(self) -> None:
        message = f"{self.command} {self.path}: this proxy only stops containers of {self.server.deployment}"
        self._answer(http.HTTPStatus.FORBIDDEN, "application/json", json.dumps({"message": message}).encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if status not in {http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in {http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED}:
            self.wfile.write(body)

    def address_string(self) -> str:
        """Name of the caller in the log: a socket file has no address."""
        return "web server"

    def log_message(self, format: str, *values: Any) -> None:
        sys.stderr.write(f"{format % values}\n")


def main() -> None:
    """Serve until stopped."""
    engine, listen, deployment = sys.argv[1:]
    with EngineProxy(Path(engine), Path(listen), deployment) as proxy:
        proxy.serve_forever()


if __name__ == "__main__":
    main()
