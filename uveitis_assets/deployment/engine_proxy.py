"""A gate before the engine's socket through which the web server can stop this deployment's runs, and nothing else.

Dagster terminates a run from the web server, so the web server has to reach the engine. The engine's own socket would
hand it the whole host. This gate lets three questions and one order pass: which version, how is this container, and
stop it, the latter two only for containers that bear the deployment's label. It listens on a socket file, which only
the web server mounts.

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
_HARMLESS = re.compile(r"(/v[0-9.]+)?/(_ping|version)")
_CONTAINER = re.compile(
    r"(?P<version>(/v[0-9.]+)?)/containers/(?P<id>[0-9a-f]{12,64})/(?P<what>json|stop(\?t=[0-9]+)?)"
)
# Stopping waits for the container, by default ten seconds.
_TIMEOUT_S = 300.0


class StopGate(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Server of the gate.

    Args:
        engine: the engine's socket.
        listen: where to listen; a socket file that a former gate left is replaced.
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
    server: StopGate
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        container = _CONTAINER.fullmatch(self.path)
        if _HARMLESS.fullmatch(self.path) or (container and container["what"] == "json" and self._is_ours(container)):
            self._pass_on("GET")
        else:
            self._refuse()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        container = _CONTAINER.fullmatch(self.path)
        if container and container["what"] != "json" and self._is_ours(container):
            self._pass_on("POST")
        else:
            self._refuse()

    def _is_ours(self, container: re.Match[str]) -> bool:
        status, _, body = self._ask("GET", f"{container['version']}/containers/{container['id']}/json")
        if status != http.HTTPStatus.OK:
            # Not there: passing the engine's own answer on tells no more than that.
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
        message = f"{self.command} {self.path}: this gate only stops containers of {self.server.deployment}"
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
        """A socket file has no address of the caller."""
        return "web server"

    def log_message(self, format: str, *values: Any) -> None:
        sys.stderr.write(f"{format % values}\n")


def main() -> None:
    """Serve until stopped."""
    engine, listen, deployment = sys.argv[1:]
    with StopGate(Path(engine), Path(listen), deployment) as gate:
        gate.serve_forever()


if __name__ == "__main__":
    main()
