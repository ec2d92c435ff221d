"""The service that watches a deployment: it tells what is wrong and serves /metrics.

It is a process of its own, because a sensor says nothing when the daemon or the code server is what failed. Run it
with ``python -m uveitis_assets.deployment.monitoring.monitor FOLDER``, as the image's entrypoint does; the folder has
alerts.yaml and what was told.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from uveitis_assets.deployment.monitoring.alert_settings import AlertSettings, AlertSettingsError
from uveitis_assets.deployment.monitoring.alerting import Alerting
from uveitis_assets.deployment.monitoring.conditions import Condition, all_conditions
from uveitis_assets.deployment.monitoring.delivery import DeliveryError, deliver
from uveitis_assets.storage.store import ArtefactStore

INTERVAL_S = 30.0
METRICS_PORT = 9464
# Failures of this time are looked for, so that a monitor that was away tells them too.
_LOOK_BACK = timedelta(days=1)
# A restart of the deployment takes some time; until then nothing is told.
_CONFIRM_S = 90.0

_log = logging.getLogger(__name__)


class Monitor:
    """Looks at the deployment again and again.

    Args:
        instance: of the deployment.
        alerts_file: settings of alerts, read anew at every look; without the file nothing is told.
        state: folder of what was told.
        folders: file systems to watch by name.
        web: address of the web server, None where there is none.
        code_server: host:port of the code server, None where there is none.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        alerts_file: Path,
        state: Path,
        *,
        folders: Mapping[str, Path],
        web: str | None = None,
        code_server: str | None = None,
    ) -> None:
        self._instance = instance
        self._alerts_file = alerts_file
        self._state = state
        self._folders = folders
        self._web = web
        self._code_server = code_server
        self._first_seen: dict[str, float] = {}

    def look(self, now: datetime, confirm_s: float = _CONFIRM_S) -> bool:
        """Tell what is wrong for ``confirm_s`` seconds by now; returns whether a message was sent.

        Raises:
            AlertSettingsError: the settings are wrong.
            DeliveryError: the message was not delivered; it is tried again at the next look.
        """
        if not self._alerts_file.exists():
            return False
        settings = AlertSettings.read(self._alerts_file)
        found = all_conditions(
            self._instance,
            now=now,
            since=now - _LOOK_BACK,
            grace=timedelta(minutes=settings.silent_after_minutes),
            folders=self._folders,
            least_free_gb=settings.disk_free_gb,
            web=self._web,
            code_server=self._code_server,
        )
        alerting = Alerting(
            settings, self._state / "alerts.json", lambda subject, text: deliver(settings, subject, text)
        )
        confirmed = self._confirmed(found, alerting, now.timestamp(), confirm_s)
        return alerting.tell(confirmed, now.timestamp())

    def _confirmed(
        self, found: Sequence[Condition], alerting: Alerting, now: float, confirm_s: float
    ) -> list[Condition]:
        """Events, what was told before, and what lasts for long enough."""
        self._first_seen = {one.key: self._first_seen.get(one.key, now) for one in found}
        return [
            one
            for one in found
            if one.is_event or one.key in alerting.told or now - self._first_seen[one.key] >= confirm_s
        ]

    def run(self, wait: Callable[[float], None] = time.sleep) -> None:
        """Look for ever; what fails is logged, and tried again."""
        while True:
            try:
                self.look(datetime.now(UTC))
            except (AlertSettingsError, DeliveryError, OSError) as error:
                _log.error("no alert was sent: %s", error)
            wait(INTERVAL_S)


def main() -> None:
    """Watch the deployment that the variables of docker/compose.yaml describe."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    state = Path(sys.argv[1])
    folders = {"data": Path(os.environ["UVEITIS_DATA"]), "state": state}
    # Here, because settings and alerts serve commands on hosts without the library.
    from prometheus_client import CollectorRegistry, start_http_server

    from uveitis_assets.deployment.monitoring.metrics import DeploymentCollector

    with dg.DagsterInstance.get() as instance:
        registry = CollectorRegistry()
        DeploymentCollector(instance, ArtefactStore.from_environment(), folders, registry)
        start_http_server(METRICS_PORT, registry=registry)
        monitor = Monitor(
            instance,
            state / "alerts.yaml",
            state,
            folders=folders,
            web="http://webserver:3000",
            code_server="code-server:4000",
        )
        monitor.run()


if __name__ == "__main__":
    main()
