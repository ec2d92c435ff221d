"""GraphQL calls to the deployment's web server over HTTP, with the standard library only."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 60.0
# How Dagster quotes an error of the driver of its Postgres database.
_DATABASE_ERRORS = ("(psycopg2.OperationalError)", "(psycopg2.InterfaceError)")


class WebserverError(Exception):
    """The web server refused a call or answered something else; the message says what to do."""


class WebserverUnreachableError(WebserverError):
    """Nothing answered; the same call may succeed later."""


class GraphqlClient:
    """Calls to one web server.

    Args:
        url: address of the UI, for example ``http://127.0.0.1:3000``.

    Raises:
        WebserverError: the address is not an HTTP address.
    """

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
            raise WebserverError(f"{url}: expected the address of the web server, such as http://127.0.0.1:3000")
        self.url = url.rstrip("/")

    def call(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Send a query and return the data of the answer.

        Raises:
            WebserverUnreachableError: nothing answered, or its database was away.
            WebserverError: the call was refused, or something else than Dagster answered.
        """
        answer = self._post({"query": query, "variables": variables})
        if answer.get("errors"):
            raise self.failed(answer["errors"][0]["message"])
        return dict(answer["data"])

    def failed(self, message: str) -> WebserverError:
        """The error for a message of Dagster; while its database is away, one that says to try again."""
        is_away = any(error in message for error in _DATABASE_ERRORS)
        return (WebserverUnreachableError if is_away else WebserverError)(f"{self.url}: {message}")

    def _post(self, content: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{self.url}/graphql",
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            if error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                # Its database restarts, or a proxy answers for a web server that does.
                raise WebserverUnreachableError(
                    f"{self.url}: HTTP {error.code} {error.reason}. See `docker/compose.sh logs webserver postgres`"
                ) from None
            raise WebserverError(
                f"{self.url}: HTTP {error.code} {error.reason}; expected Dagster's web server. Give its address with "
                "--url or UVEITIS_URL"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise WebserverUnreachableError(
                f"{self.url}: no web server answers ({reason}). Start the deployment with `docker/compose.sh "
                "up -d`, or give its address with --url or UVEITIS_URL"
            ) from None
        except ValueError:
            raise WebserverError(f"{self.url}: the answer is not JSON; expected Dagster's web server") from None
