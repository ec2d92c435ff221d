"""How the end of a container is reported, and which stopped containers are removed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from uveitis_assets.launcher.stopped_containers import describe_exit, remove_expired, stop_abandoned
from uveitis_assets_tests.launcher.fake_engine import NEVER, FakeContainer, FakeEngine

NOW = datetime(2026, 5, 2, 12, tzinfo=UTC)


def _dead(engine: FakeEngine, *, memory: int = 0, log: bytes = b"", **state: Any) -> FakeContainer:
    attrs = {"State": {"Status": "exited"} | state, "HostConfig": {"Memory": memory}}
    return FakeContainer(engine, "c", {"labels": {}}, status="exited", attrs=attrs, log=log)


def test_running_out_of_memory_is_named_with_the_limit_and_a_larger_one():
    container = _dead(FakeEngine(), memory=512 * 2**20, OOMKilled=True, ExitCode=137)
    text = describe_exit(container, 5)
    assert "Out of memory (OOM)" in text
    assert "memory limit of 512 MiB" in text
    assert 'docker/container_kwargs={"mem_limit": "1024m"}' in text


def test_running_out_of_the_hosts_memory_is_told_apart_from_a_limit():
    text = describe_exit(_dead(FakeEngine(), OOMKilled=True, ExitCode=137), 5)
    assert "no memory limit of its own: the host ran out" in text


def test_a_kill_from_outside_is_not_called_out_of_memory():
    text = describe_exit(_dead(FakeEngine(), OOMKilled=False, ExitCode=137), 5)
    assert "SIGKILL (exit code 137)" in text
    assert "OOM" not in text


def test_the_end_of_the_log_is_quoted_up_to_the_asked_lines_and_a_size():
    lines = b"".join(b"line %d\n" % number for number in range(100))
    text = describe_exit(_dead(FakeEngine(), ExitCode=1, log=lines), 3)
    assert text.endswith("Last lines of its log:\nline 97\nline 98\nline 99")
    long = describe_exit(_dead(FakeEngine(), ExitCode=1, log=b"x" * 1_000_000), 3)
    assert 8000 < len(long) < 9000
    assert describe_exit(_dead(FakeEngine(), ExitCode=1), 3).endswith("Its log is empty.")


def _stopped(engine: FakeEngine, name: str, **changes: Any) -> None:
    fields: dict[str, Any] = {"status": "exited", "finished": "2026-05-01T00:00:00.123456789Z", "deployment": "clinic"}
    fields |= changes
    labels = {"dagster/run_id": f"run of {name}", "uveitis/deployment": fields["deployment"]}
    attrs = {"State": {"FinishedAt": fields["finished"]}, "Created": "2026-04-01T00:00:00Z"}
    engine.all.append(FakeContainer(engine, name, {"labels": labels}, status=fields["status"], attrs=attrs))


def test_only_this_deployments_stopped_containers_past_retention_are_removed():
    engine = FakeEngine()
    _stopped(engine, "old")
    _stopped(engine, "never started", status="created", finished=NEVER)
    _stopped(engine, "recent", finished="2026-05-02T11:00:00.5Z")
    _stopped(engine, "running", status="running", finished=NEVER)
    _stopped(engine, "of another deployment", deployment="laptop")
    _stopped(engine, "awaited by monitoring")

    removed = remove_expired(
        engine, "clinic", timedelta(hours=24), NOW, lambda run_id: run_id == "run of awaited by monitoring"
    )

    assert removed == ["never started", "old"]
    assert sorted(c.name for c in engine.all) == [
        "awaited by monitoring",
        "of another deployment",
        "recent",
        "running",
    ]


@pytest.mark.parametrize(("hours", "removed"), [(35.9, ["old"]), (36.1, [])])
def test_retention_counts_from_the_end_of_the_container(hours: float, removed: list[str]):
    engine = FakeEngine()
    _stopped(engine, "old")
    assert remove_expired(engine, "clinic", timedelta(hours=hours), NOW, lambda run_id: False) == removed


def test_containers_that_go_on_after_their_run_are_stopped_and_no_others():
    engine = FakeEngine()
    _stopped(engine, "abandoned", status="running", finished=NEVER)
    _stopped(engine, "working", status="running", finished=NEVER)
    _stopped(engine, "abandoned elsewhere", status="running", finished=NEVER, deployment="laptop")
    assert stop_abandoned(engine, "clinic", lambda run_id: "abandoned" in run_id) == ["abandoned"]
    assert {c.name: c.status for c in engine.all} == {
        "abandoned": "exited",
        "working": "running",
        "abandoned elsewhere": "running",
    }
