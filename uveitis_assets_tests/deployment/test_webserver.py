"""Which answers of the web server end a submission, and after which it waits and asks again."""

import io
import json
import urllib.error
import urllib.request
from email.message import Message
from unittest import mock

import pytest

from uveitis_assets.deployment.graphql_client import WebserverError, WebserverUnreachableError
from uveitis_assets.deployment.webserver import Webserver


@pytest.mark.parametrize("code", [500, 502])
def test_a_server_error_may_pass(code: int) -> None:
    answer = urllib.error.HTTPError("http://127.0.0.1:3000/graphql", code, "trouble", Message(), None)
    with (
        mock.patch.object(urllib.request, "urlopen", side_effect=answer),
        pytest.raises(WebserverUnreachableError, match=f"HTTP {code}"),
    ):
        Webserver("http://127.0.0.1:3000").daemons()


def test_a_server_that_refuses_is_not_asked_again() -> None:
    answer = urllib.error.HTTPError("http://127.0.0.1:3000/graphql", 401, "Unauthorized", Message(), None)
    with (
        mock.patch.object(urllib.request, "urlopen", side_effect=answer),
        pytest.raises(WebserverError, match="HTTP 401") as refused,
    ):
        Webserver("http://127.0.0.1:3000").daemons()
    assert not isinstance(refused.value, WebserverUnreachableError)


@pytest.mark.parametrize(
    ("message", "may_pass"),
    [
        ("(psycopg2.OperationalError) server closed the connection unexpectedly", True),
        ("(psycopg2.InterfaceError) connection already closed", True),
        ("Cannot query field 'assetNodes'", False),
    ],
)
def test_an_error_of_the_web_servers_database_may_pass_and_another_does_not(message: str, may_pass: bool) -> None:
    answer = json.dumps({"errors": [{"message": message}]}).encode()
    with (
        mock.patch.object(urllib.request, "urlopen", side_effect=lambda *_, **__: io.BytesIO(answer)),
        pytest.raises(WebserverError) as raised,
    ):
        Webserver("http://127.0.0.1:3000").daemons()
    assert isinstance(raised.value, WebserverUnreachableError) == may_pass
    assert str(raised.value) == f"http://127.0.0.1:3000: {message}"
