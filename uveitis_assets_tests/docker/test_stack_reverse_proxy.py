"""The proxy that docs/how-to/deploy.md shows, in front of the deployment: who has no password sees nothing."""

import base64
import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping

import pytest

from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.docker.engine import ToolMissingError, free_port
from uveitis_assets_tests.docker.stack import Stack
from uveitis_assets_tests.patience import patience

pytestmark = [pytest.mark.docker, pytest.mark.timeout(patience(600))]

_SIGNED_IN = {"Authorization": f"Basic {base64.b64encode(b'doctor:open sesame').decode()}"}
_WEB_SOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "graphql-ws",
}


def _documented() -> str:
    page = (REPOSITORY / "docs/how-to/deploy.md").read_text()
    [example] = re.findall(r"^```nginx\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(example)


@pytest.fixture(scope="module")
def proxy(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an nginx with the documented server; only its ports and files are others."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise ToolMissingError("no nginx: apt-get install -y nginx-light openssl")
    work, port = tmp_path_factory.mktemp("proxy"), free_port()
    certificate = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    files = ["-keyout", work / "uveitis.key", "-out", work / "uveitis.pem"]
    subprocess.run(["openssl", "req", *certificate, *files], check=True, capture_output=True)
    password = subprocess.run(["openssl", "passwd", "-apr1", "open sesame"], check=True, capture_output=True, text=True)
    (work / "uveitis.htpasswd").write_text(f"doctor:{password.stdout}")
    work.chmod(0o755)
    server = _documented()
    for there, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("http://127.0.0.1:3000", stack.settings.url),
        ("/etc/ssl/certs/", f"{work}/"),
        ("/etc/ssl/private/", f"{work}/"),
        ("/etc/nginx/", f"{work}/"),
    ):
        assert there in server
        server = server.replace(there, here)
    user = "user root;" if os.geteuid() == 0 else ""
    (work / "nginx.conf").write_text(
        f"{user} daemon off; pid {work}/pid; error_log {work}/error.log; events {{}}\n"
        f"http {{ access_log {work}/access.log; client_body_temp_path {work}/body; proxy_temp_path {work}/temp;\n"
        f"fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;\n{server} }}\n"
    )
    process = subprocess.Popen([program, "-c", work / "nginx.conf", "-e", work / "error.log"])
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + patience(10)
    while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
        assert process.poll() is None, "nginx refused the documented configuration"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _get(port: int, path: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    # The certificate is the test's own.
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port, context=ssl._create_unverified_context(), timeout=patience(30)
    )
    connection.request("GET", path, headers=dict(headers))
    return connection.getresponse()


@pytest.mark.parametrize("path", ["/", "/graphql?query={version}", "/server_info"])
def test_who_does_not_sign_in_gets_nothing(proxy: int, path: str) -> None:
    assert _get(proxy, path, {}).status == 401
    wrong = {"Authorization": f"Basic {base64.b64encode(b'doctor:wrong').decode()}"}
    assert _get(proxy, path, wrong).status == 401
    assert _get(proxy, path, _WEB_SOCKET).status == 401


def test_who_signs_in_gets_the_ui_and_its_answers(proxy: int) -> None:
    page = _get(proxy, "/", _SIGNED_IN)
    assert page.status == 200
    assert b"__NEXT_DATA__" in page.read()
    assert b'"version"' in _get(proxy, "/graphql?query={version}", _SIGNED_IN).read()


def test_the_web_socket_over_which_the_ui_follows_runs_passes(proxy: int) -> None:
    answer = _get(proxy, "/graphql", _SIGNED_IN | _WEB_SOCKET)
    assert answer.status == 101
    assert answer.headers["Sec-WebSocket-Protocol"] == "graphql-ws"
