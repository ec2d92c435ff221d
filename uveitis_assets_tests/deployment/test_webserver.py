"""Which answers of the web server end a submission, and which are worth waiting for."""

import urllib.error
import urllib.request
from email.message import Message
from unittest import mock

import pytest

from uveitis_assets.deployment.webserver import Webserver, WebserverError, WebserverUnreachableError


@pytest.mark.parametrize("code", [500, 502])
def test_a_server_in_trouble_may_answer_later(code: int) -> None:
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
