"""A mail server and a web server for tests, which keep what they get."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from typing import Any


class MailServer(socketserver.ThreadingTCPServer):
    """Takes mail by SMTP, without TLS and login; ``mails`` holds sender, recipients and message."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SmtpHandler)
        self.mails: list[tuple[str, list[str], Message]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _SmtpHandler(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self._answer("220 test")
        sender, recipients = "", []
        while line := self.rfile.readline().decode().strip():
            command = line.upper()
            if command.startswith("MAIL FROM:"):
                sender = line[10:].split(">")[0].strip("< ")
            elif command.startswith("RCPT TO:"):
                recipients.append(line[8:].strip("<> "))
            elif command == "DATA":
                self._answer("354 go on")
                data = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    data += part
                self.server.mails.append((sender, recipients, message_from_bytes(data)))
            elif command == "QUIT":
                self._answer("221 bye")
                return
            self._answer("250 ok")

    def _answer(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


class WebhookServer(http.server.ThreadingHTTPServer):
    """Takes JSON; ``posts`` holds path and content, ``status`` is what it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _WebhookHandler)
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _WebhookHandler(http.server.BaseHTTPRequestHandler):
    server: WebhookServer

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.end_headers()

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.status == 200:
            self.server.posts.append((self.path, content))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


RUNS = json.dumps({"data": {"runsOrError": {"__typename": "Runs"}}}).encode()
"""What the web server answers where it can read runs."""


def answering(body: bytes, status: int = 200) -> type[http.server.BaseHTTPRequestHandler]:
    """Handler that gives every request the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815 - names of the standard library

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
