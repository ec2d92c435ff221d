"""Alerts against a mail server and a web server: what is told, to whom, how often, and what never stands in them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import grpc
import pytest
import yaml
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.error import SerializableErrorInfo
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets.deployment.monitoring.alert_settings import AlertSettings, AlertSettingsError
from uveitis_assets.deployment.monitoring.alerting import Alerting
from uveitis_assets.deployment.monitoring.conditions import (
    Condition,
    low_disk,
    missed_ticks,
    unhealthy_services,
    unseen_daemons,
)
from uveitis_assets.deployment.monitoring.delivery import DeliveryError
from uveitis_assets.deployment.monitoring.monitor import Monitor
from uveitis_assets_tests.deployment.message_servers import RUNS, MailServer, WebhookServer, answering, serving

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


@dg.asset(key=["lane", "tiles"], partitions_def=dg.StaticPartitionsDefinition(["b00001", "Anna Muster 1955"]))
def failing() -> None:
    raise RuntimeError("Anna Muster.jpg: it cannot be read")


@pytest.fixture
def mail() -> Iterator[MailServer]:
    server = MailServer()
    with serving(server):
        yield server


@pytest.fixture
def webhook() -> Iterator[WebhookServer]:
    server = WebhookServer()
    with serving(server):
        yield server


def _settings(tmp_path: Path, mail: MailServer | None, webhook: WebhookServer | None, **further: object) -> Path:
    content: dict[str, object] = {"name": "clinic", **further}
    if mail is not None:
        to = {"sender": "uveitis@example.org", "to": ["anna@example.org", "ops@example.org"], "tls": "none"}
        content["mail"] = {"host": "127.0.0.1", "port": mail.port, **to}
    if webhook is not None:
        (tmp_path / "webhook").write_text(f"{webhook.url}/a-secret-path\n")
        content["webhook"] = {"url_file": str(tmp_path / "webhook")}
    file = tmp_path / "alerts.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _monitor(instance: dg.DagsterInstance, tmp_path: Path, file: Path) -> Monitor:
    return Monitor(instance, file, tmp_path, folders={"data": tmp_path})


def test_failed_runs_are_told_once_by_mail_and_webhook_without_names_of_patients(
    instance: dg.DagsterInstance, tmp_path: Path, mail: MailServer, webhook: WebhookServer
) -> None:
    file = _settings(tmp_path, mail, webhook, disk_free_gb=1e-9)
    for key in ("b00001", "Anna Muster 1955"):
        # As the web server queues a run.
        job = dg.Definitions([failing]).resolve_implicit_global_asset_job_def()
        run = instance.create_run_for_job(
            job, tags={"dagster/partition": key}, asset_selection=frozenset({failing.key})
        )
        instance.report_run_failed(run, "Anna Muster.jpg: it cannot be read")
    ids = [run.run_id[:8] for run in instance.get_runs(ascending=True)]
    now = datetime.now(UTC)
    assert _monitor(instance, tmp_path, file).look(now)
    [(sender, recipients, message)] = mail.mails
    assert (sender, recipients) == ("uveitis@example.org", ["anna@example.org", "ops@example.org"])
    assert message["Subject"] == "[clinic] 2 problems, 0 over"
    lines = message.get_payload(decode=True).decode().splitlines()
    assert lines == [
        f"run {ids[0]} failed: lane/tiles, partition b00001",
        f"run {ids[1]} failed: lane/tiles, partition (key not shown)",
    ]
    [(path, content)] = webhook.posts
    assert path == "/a-secret-path"
    assert content["lines"] == lines
    assert content["text"].startswith("[clinic] 2 problems")
    assert "Anna" not in message.as_string() + str(content)
    # Neither the same monitor nor one that starts anew tells them again.
    assert not _monitor(instance, tmp_path, file).look(now + timedelta(minutes=1))
    assert (len(mail.mails), len(webhook.posts)) == (1, 1)


def test_a_run_that_is_retried_is_not_told(
    instance: dg.DagsterInstance, tmp_path: Path, webhook: WebhookServer
) -> None:
    tags = {"dagster/will_retry": "true"}
    dg.materialize([failing], partition_key="b00001", instance=instance, raise_on_error=False, tags=tags)
    file = _settings(tmp_path, None, webhook, disk_free_gb=1e-9)
    assert not _monitor(instance, tmp_path, file).look(datetime.now(UTC))
    assert webhook.posts == []


def test_what_lasts_is_told_after_a_while_again_after_a_day_and_when_it_is_over(
    instance: dg.DagsterInstance, tmp_path: Path, webhook: WebhookServer
) -> None:
    file = _settings(tmp_path, None, webhook, disk_free_gb=1e9)
    monitor = _monitor(instance, tmp_path, file)
    moments = [timedelta(), timedelta(minutes=1), timedelta(minutes=2), timedelta(hours=23), timedelta(hours=25)]
    assert [monitor.look(NOW + moment) for moment in moments] == [False, False, True, False, True]
    disk = [line for line in webhook.posts[0][1]["lines"] if line.startswith("disk of data")]
    assert len(disk) == 1
    assert "expected 1e+09 GB" in disk[0]
    # A fresh instance has no daemons, which is told too.
    assert any(line.startswith("daemon SENSOR is silent, never seen") for line in webhook.posts[0][1]["lines"])
    _settings(tmp_path, None, webhook, disk_free_gb=1e-9)
    assert monitor.look(NOW + timedelta(hours=26))
    assert webhook.posts[-1][1]["lines"] == [f"over: {disk[0]}"]


def test_what_could_not_be_delivered_is_sent_again(
    instance: dg.DagsterInstance, tmp_path: Path, webhook: WebhookServer
) -> None:
    dg.materialize([failing], partition_key="b00001", instance=instance, raise_on_error=False)
    file = _settings(tmp_path, None, webhook, disk_free_gb=1e-9)
    monitor = _monitor(instance, tmp_path, file)
    webhook.status = 503
    with pytest.raises(DeliveryError, match="webhook: 503") as raised:
        monitor.look(datetime.now(UTC))
    assert "a-secret-path" not in str(raised.value)
    webhook.status = 200
    assert monitor.look(datetime.now(UTC))
    assert len(webhook.posts) == 1


def test_an_hour_holds_few_messages_and_what_came_meanwhile_is_in_the_next(tmp_path: Path) -> None:
    sent: list[str] = []
    settings = AlertSettings(messages_per_hour=2)
    alerting = Alerting(settings, tmp_path / "state.json", lambda subject, text: sent.append(text))
    runs = [Condition(f"run:{number}", f"run {number} failed", is_event=True) for number in range(6)]
    told = [alerting.tell(runs[: number + 1], 60.0 * number) for number in range(5)]
    assert told == [True, True, False, False, False]
    assert alerting.tell(runs, 3601.0)
    assert sent == ["run 0 failed", "run 1 failed", "run 2 failed\nrun 3 failed\nrun 4 failed\nrun 5 failed"]


def test_a_disk_with_space_and_services_that_answer_are_no_condition(tmp_path: Path) -> None:
    assert list(low_disk({"data": tmp_path}, 1e-9)) == []
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    servicer.set("DagsterApi", health_pb2.HealthCheckResponse.SERVING)
    web = ThreadingHTTPServer(("127.0.0.1", 0), answering(RUNS))
    url = f"http://127.0.0.1:{web.server_port}"
    with serving(web):
        assert list(unhealthy_services(url, address)) == []
    servicer.set("DagsterApi", health_pb2.HealthCheckResponse.NOT_SERVING)
    found = {condition.key for condition in unhealthy_services(url, address)}
    server.stop(None).wait()
    assert found == {"service:webserver", "service:code-server"}
    assert {condition.key for condition in unhealthy_services(None, address)} == {"service:code-server"}


def test_a_silent_daemon_is_named(instance: dg.DagsterInstance) -> None:
    assert {"daemon:SENSOR", "daemon:SCHEDULER"} <= {condition.key for condition in unseen_daemons(instance)}


def _automation(instance: dg.DagsterInstance, name: str, data: object) -> InstigatorState:
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(module_name="uveitis_assets.definitions"), location_name="uveitis_assets"
    )
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    kind = InstigatorType.SENSOR if isinstance(data, SensorInstigatorData) else InstigatorType.SCHEDULE
    state = InstigatorState(origin, kind, InstigatorStatus.RUNNING, data)
    instance.add_instigator_state(state)
    return state


def _tick(instance: dg.DagsterInstance, state: InstigatorState, at: datetime, status: TickStatus) -> None:
    data = TickData(
        state.instigator_origin_id,
        state.instigator_name,
        state.instigator_type,
        status,
        at.timestamp(),
        selector_id=state.selector_id,
        error=SerializableErrorInfo("Anna Muster.jpg", [], None) if status is TickStatus.FAILURE else None,
    )
    instance.create_tick(data)


def test_overdue_and_failed_ticks_are_conditions_and_those_in_time_are_not(instance: dg.DagsterInstance) -> None:
    def sensor(name: str, ago: timedelta, status: TickStatus = TickStatus.SKIPPED) -> None:
        state = _automation(instance, name, SensorInstigatorData(min_interval=30))
        _tick(instance, state, NOW - ago, status)

    def nightly(name: str, last: datetime) -> None:
        state = _automation(instance, name, ScheduleInstigatorData("0 2 * * *", (NOW - timedelta(days=9)).timestamp()))
        _tick(instance, state, last, TickStatus.SKIPPED)

    sensor("in_time", timedelta(minutes=1))
    sensor("late", timedelta(minutes=17))
    sensor("broken", timedelta(minutes=1), TickStatus.FAILURE)
    nightly("nightly", datetime(2026, 3, 4, 2, 0, tzinfo=UTC))
    nightly("nightly_missed", datetime(2026, 3, 3, 2, 0, tzinfo=UTC))
    _automation(instance, "just_started", ScheduleInstigatorData("0 2 * * *", (NOW - timedelta(hours=1)).timestamp()))
    found = {condition.key: condition.text for condition in missed_ticks(instance, NOW, timedelta(minutes=15))}
    assert sorted(found) == ["tick:broken", "tick:late", "tick:nightly_missed"]
    assert "its last tick failed" in found["tick:broken"]
    assert "no tick since 2026-03-03 02:00 UTC" in found["tick:nightly_missed"]


def test_the_command_sends_a_test_message_and_fails_where_nobody_is_reached(
    tmp_path: Path, mail: MailServer, webhook: WebhookServer
) -> None:
    done = CliRunner().invoke(app, ["alert-test", str(_settings(tmp_path, mail, webhook))])
    assert (done.exit_code, "sent: mail to anna@example.org" in done.output) == (0, True), done.output
    assert mail.mails[0][2]["Subject"] == "[clinic] test of the alerts"
    assert len(webhook.posts) == 1
    done = CliRunner().invoke(app, ["alert-test", str(_settings(tmp_path, None, None))])
    assert (done.exit_code, "nobody would be told" in done.output) == (2, True)
    webhook.status = 404
    done = CliRunner().invoke(app, ["alert-test", str(_settings(tmp_path, mail, webhook))])
    assert (done.exit_code, "webhook: 404" in done.output) == (2, True)
    assert len(mail.mails) == 2, "one way that fails does not stop the other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mail": {"host": "h", "sender": "a@b", "to": []}}, "mail.to"),
        ({"mail": {"host": "h", "sender": "a@b", "to": ["c@d"], "user": "u"}}, "user and password_file"),
        ({"webhook": {}}, "either url or url_file"),
        ({"mails": {}}, "mails"),
        (
            {
                "mail": {
                    "host": "h",
                    "sender": "a@b",
                    "to": ["c@d"],
                    "tls": "none",
                    "user": "u",
                    "password_file": "/run/secrets/p",
                }
            },
            "not sent without TLS",
        ),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, content: dict[str, object], message: str) -> None:
    file = tmp_path / "alerts.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(AlertSettingsError, match=message):
        AlertSettings.read(file)
