"""`uveitis-assets submit` against a real web server and daemon: what it queues, follows, prints and returns."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import dagster as dg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.patience import patience

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(patience(120))]

_START_S = 120
_SETTINGS = """\
telemetry: {enabled: false}
# The deployment's, with processes for containers.
run_launcher:
  module: uveitis_assets_tests.deployment.process_containers
  class: ProcessRunLauncher
  config: {image: none}
run_queue:
  dequeue_interval_seconds: 1
  # Runs that stay in the queue.
  tag_concurrency_limits: [{key: held, limit: 0}]
"""


@dataclass
class Served:
    """A running `dagster dev` over the lane of served_definitions."""

    url: str
    instance: dg.DagsterInstance

    def submit(self, *arguments: str) -> Result:
        return _submit(self.url, *arguments)

    def runs(self) -> list[dg.DagsterRun]:
        """Runs, oldest first."""
        return list(reversed(self.instance.get_runs()))

    def materialized(self, *key: str) -> set[str]:
        return set(self.instance.get_materialized_partitions(dg.AssetKey(key)))


def _start_submit(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "uveitis_assets.cli", "submit", *arguments],
        env=os.environ | {"UVEITIS_URL": url, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
    )


def _submit(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["submit", *arguments], env={"UVEITIS_URL": url, "COLUMNS": "200"})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text(_SETTINGS)
    port = _free_port()
    log = home / "log"
    with dg.DagsterInstance.from_config(str(home)) as instance, log.open("wb") as output:
        instance.add_dynamic_partitions("eye_batches", ["b00001", "b00002", "b00003"])
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(port)),
                *("--module-name", "uveitis_assets_tests.deployment.served_definitions"),
            ],
            env=os.environ | {"DAGSTER_HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
            cwd=home,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Its children do not end with it, so the whole group is stopped.
            start_new_session=True,
        )
        try:
            _wait_for(port, log)
            yield Served(f"http://127.0.0.1:{port}", instance)
        finally:
            # Nothing of it is needed any more, and an orderly end takes tens of seconds.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, log: Path) -> None:
    deadline = time.monotonic() + patience(_START_S)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            pytest.fail(f"dagster dev does not listen:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.2)


def _wait_for_run(served: Served, before: int) -> dg.DagsterRun:
    """The first run after the ``before`` earlier ones."""
    deadline = time.monotonic() + patience(60)
    while len(made := served.runs()[before:]) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return made[0]


def test_a_partition_is_queued_followed_and_made(served: Served) -> None:
    done = served.submit("eye/manifest", "eye/tiles", "--partition", "b00002", "--tag", "asked/by=a test")
    assert done.exit_code == 0, done.output
    run = served.runs()[-1]
    assert served.materialized("eye", "tiles") == {"b00002"}
    assert run.job_name == "eye_lane"
    assert run.tags["uveitis/lane"] == "eye"
    assert run.tags["asked/by"] == "a test"
    assert f"eye/manifest, eye/tiles[b00002]: success on cpu  {served.url}/runs/{run.run_id}" in done.output


def test_missing_partitions_and_then_the_labels_are_made_in_order(served: Served) -> None:
    before = len(served.runs())
    done = served.submit("eye", "--missing")
    assert done.exit_code == 0, done.output
    assert served.materialized("eye", "manifest") == {"b00001", "b00002", "b00003"}
    assert served.materialized("eye", "labels") == {"fold0|train", "fold1|train"}
    made = served.runs()[before:]
    spans = [run.tags.get("dagster/partition") or run.tags["dagster/asset_partition_range_start"] for run in made]
    assert sorted(spans[:2]) == ["b00001", "b00003"]
    assert spans[2:] == ["fold0|train"]
    batches = [served.instance.get_run_stats(run.run_id) for run in made]
    assert all(stats.end_time is not None and batches[2].enqueued_time is not None for stats in batches)
    assert max(float(stats.end_time or 0) for stats in batches[:2]) <= float(batches[2].enqueued_time or 0)
    again = served.submit("eye", "--missing")
    assert again.exit_code == 0
    assert "Nothing is missing." in again.output


def test_one_partition_of_two_dimensions_can_be_made_by_itself(served: Served) -> None:
    done = served.submit("eye/labels", "--partition", "fold1|train")
    assert done.exit_code == 0, done.output
    assert served.runs()[-1].tags["dagster/partition"] == "fold1|train"


def test_a_failure_is_shown_with_its_reason_and_ends_the_submission(served: Served) -> None:
    before = len(served.runs())
    done = served.submit("torn", "--all")
    assert done.exit_code == 1
    assert "expected an image, found half of one" in done.output
    made = served.runs()[before:]
    assert [run.asset_selection for run in made] == [{dg.AssetKey(["torn", "manifest"])}]


def test_an_unknown_partition_queues_nothing(served: Served) -> None:
    before = len(served.runs())
    done = served.submit("eye/tiles", "--partition", "b00009")
    assert done.exit_code == 2
    assert "found no partition b00009" in done.output
    assert len(served.runs()) == before


def test_a_run_that_is_deleted_ends_the_submission_as_a_failure(served: Served) -> None:
    before = len(served.runs())
    submission = _start_submit(served.url, "eye/tiles", "--partition", "b00001", "--tag", "held=yes")
    assert submission.stdout is not None
    assert ": queued  " in submission.stdout.readline()
    [run] = served.runs()[before:]
    served.instance.delete_run(run.run_id)
    output, _ = submission.communicate(timeout=patience(60))
    assert submission.returncode == 1, output
    assert f"eye/tiles[b00001]: deleted  {served.url}/runs/{run.run_id}" in output
    assert "The run was deleted" in output


@pytest.mark.parametrize("tag", ["held", "=yes", ""])
def test_a_tag_without_key_or_value_queues_nothing_and_is_refused_with_an_example(served: Served, tag: str) -> None:
    before = len(served.runs())
    done = served.submit("eye/tiles", "--partition", "b00001", "--tag", tag)
    assert done.exit_code == 2
    assert f"--tag: expected key=value, such as uveitis/gpu=required, found {tag!r}" in done.output
    assert len(served.runs()) == before


def test_following_waits_for_a_web_server_that_goes_away(served: Served) -> None:
    with _Interrupting(served.url) as proxy:
        before = len(served.runs())
        submission = _start_submit(proxy.url, "eye/tiles", "--partition", "b00001")
        _wait_for_run(served, before)
        proxy.refusing.set()
        # It asks again after a refusal.
        for _ in range(2):
            assert proxy.refused.acquire(timeout=patience(30))
        proxy.refusing.clear()
        output, _ = submission.communicate(timeout=patience(60))
    assert submission.returncode == 0
    assert ": success" in output


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:3000"])
def test_without_a_web_server_the_error_tells_how_to_start_or_name_one(url: str) -> None:
    done = _submit(url, "eye/tiles", "--all")
    assert done.exit_code == 2
    assert url in done.output
    assert "web server" in done.output


class _Interrupting:
    """A proxy before a web server that drops connections while ``refusing`` is set, and counts them in ``refused``."""

    def __init__(self, target: str) -> None:
        self.refusing = threading.Event()
        self.refused = threading.Semaphore(0)
        self._target = target

    def __enter__(self) -> Self:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if proxy.refusing.is_set():
                    self.close_connection = True
                    proxy.refused.release()
                    return
                request = urllib.request.Request(proxy._target + self.path, body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=patience(30)) as answer:
                    content = answer.read()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
