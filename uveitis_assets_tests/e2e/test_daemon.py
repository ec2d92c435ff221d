"""A real `dagster dev`: files dropped into the landing folder end in COCO files, and nothing else is run again.

The lanes are a project of the test's own, whose defs.yaml asks for short intervals and a schedule of every minute.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets.sample import write_fgadr, write_uwf700
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.components.running_platform import read_coco
from uveitis_assets_tests.e2e.installation import BIN, Installation, land
from uveitis_assets_tests.lane_project import write_project
from uveitis_assets_tests.patience import patience

pytestmark = pytest.mark.e2e

LIMIT_S = 150
BATCH_ASSETS = ("manifest", "roi_masks", "normalized_crops", "tiles")
LANE = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: {name}
  layout: {layout}
  folder: {folder}
  roi: {{method: threshold}}
  tiling: {{global_size: 128, tile_size: 96}}
  splits: {{folds: 2}}
  labels: {{format: {labels}, debug_max_images: 2}}
  automation:
    landing_sensor: {landing}
    landing_interval_s: 1
    labels_sensor: {landing}
    labels_interval_s: 1
    fill_schedule: {schedule}
    fill_cron: "* * * * *"
"""
UWF700 = LANE.format(
    name="uwf700", layout="uwf700", folder="uwf-700", labels="obb", landing="running", schedule="stopped"
)
FGADR = LANE.format(name="fgadr", layout="fgadr", folder="fgadr", labels="mask", landing="stopped", schedule="running")


@dataclass
class Daemon:
    """`dagster dev` over one installation, as a process group of its own."""

    user: Installation
    process: subprocess.Popen[str]
    log: Path
    instance: dg.DagsterInstance

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for the condition, at most LIMIT_S; failed runs and a dead daemon end it at once."""
        deadline = time.monotonic() + patience(LIMIT_S)
        while not condition():
            failed = self.instance.get_runs(filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
            ended = self.process.poll()
            if failed or ended is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-80:])
                pytest.fail(
                    f"waited for {what}; daemon ended with {ended}; failed runs {failed}; end of its log:\n{tail}"
                )
            time.sleep(0.3)

    def is_idle(self) -> bool:
        unfinished = [
            dg.DagsterRunStatus.QUEUED,
            dg.DagsterRunStatus.NOT_STARTED,
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.STARTED,
        ]
        return not self.instance.get_runs(filters=dg.RunsFilter(statuses=unfinished))

    def counts(self, asset: str) -> dict[str, int]:
        """Number of materializations of each partition."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset.split("/")), limit=500).records
        return dict(Counter(str(record.partition_key) for record in records))

    def n_ticks(self, sensor: str) -> int:
        states = [state for state in self.instance.all_instigator_state() if state.instigator_name == sensor]
        return sum(
            len(self.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1000)) for state in states
        )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Started with an fgadr batch that is registered and was never run, and an empty landing folder of uwf700."""
    write_project(tmp_path / "project", "short_intervals", {"uwf700": UWF700, "fgadr": FGADR})
    user = Installation(tmp_path, {"PYTHONPATH": str(tmp_path / "project")})
    write_fgadr(user.raw, 4, 3, 160, workers=1)
    (user.raw / "uwf-700").mkdir()
    user.succeed("uveitis-assets", "register", "fgadr")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "daemon.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [BIN / "dagster", "dev", "-m", "short_intervals.definitions", "--host", "127.0.0.1", "--port", str(port)],
            env=user.variables(),
            cwd=tmp_path / "project",
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        with user.instance() as instance:
            yield Daemon(user, process, log, instance)
    finally:
        # The code servers are in the same group. Everything is idle, and dagster dev does not end on SIGTERM.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_what_lands_is_registered_run_and_labelled_and_nothing_else(daemon: Daemon, tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    write_uwf700(sample, 6, 5, 320, 252, workers=1)
    store = ArtefactStore(root=daemon.user.data, raw=daemon.user.raw)

    def landed(pattern: str) -> list[str]:
        return sorted(path.relative_to(sample).as_posix() for path in sample.glob(pattern))

    def labelled() -> set[str]:
        if not all(store.coco_file("uwf700", split, 0, tiles=False).exists() for split in ("train", "val", "test")):
            return set()
        return {
            image["image_id"]
            for split in ("train", "val", "test")
            for image in read_coco(store, "uwf700", split)["images"]
        }

    def labels_refreshed(times: int) -> bool:
        counts = daemon.counts("uwf700/coco_labels")
        return len(counts) == 6 and min(counts.values()) >= times and daemon.is_idle()

    # Two of the four uveitis images land first, with their labels; of them, the second has an empty label file.
    first = [f"uwf-700/Images/Uveitis/Uveitis-00{number}.jpg" for number in (1, 2)]
    land(sample, daemon.user.raw, [name.replace("Images", "Labels").replace(".jpg", ".txt") for name in first])
    land(sample, daemon.user.raw, first)
    daemon.wait("labels of the first images", lambda: labels_refreshed(1))
    assert labelled() == {"uwf700::Uveitis-001", "uwf700::Uveitis-002"}
    for asset in BATCH_ASSETS:
        assert daemon.counts(f"uwf700/{asset}") == {"b00001": 1}

    # More images land: a new batch, and only that.
    later = [name for name in landed("uwf-700/Images/*/*") if name not in first]
    land(sample, daemon.user.raw, later)
    daemon.wait("labels after the second landing", lambda: labels_refreshed(2))
    for asset in BATCH_ASSETS:
        assert daemon.counts(f"uwf700/{asset}") == {"b00001": 1, "b00002": 1}

    # A label file lands for an image that had none: its manifest and the labels, no pixels.
    unlabelled = daemon.user.raw / "uwf-700" / "Labels" / "Uveitis" / "Uveitis-003.txt"
    assert not unlabelled.exists()
    unlabelled.write_text("4 0.3 0.3 0.5 0.3 0.5 0.5 0.3 0.5\n")
    daemon.wait("labels after the label file", lambda: labels_refreshed(3))
    assert labelled() == {"uwf700::Uveitis-001", "uwf700::Uveitis-002", "uwf700::Uveitis-003"}
    assert daemon.counts("uwf700/manifest") == {"b00001": 1, "b00002": 2}
    for asset in BATCH_ASSETS[1:]:
        assert daemon.counts(f"uwf700/{asset}") == {"b00001": 1, "b00002": 1}

    # Meanwhile the schedule has filled what was registered and never run, once; then nothing is asked for any more.
    daemon.wait("the schedule's run", lambda: daemon.counts("fgadr/tiles") != {} and daemon.is_idle())
    for asset in BATCH_ASSETS:
        assert daemon.counts(f"fgadr/{asset}") == {"b00001": 1}
    runs = daemon.instance.get_runs_count()
    ticks = daemon.n_ticks("uwf700_landing"), daemon.n_ticks("uwf700_labels_refresh")
    daemon.wait(
        "idle ticks of both sensors",
        lambda: (
            daemon.n_ticks("uwf700_landing") >= ticks[0] + 2 and daemon.n_ticks("uwf700_labels_refresh") >= ticks[1] + 2
        ),
    )
    assert daemon.instance.get_runs_count() == runs
    assert set(daemon.counts("uwf700/coco_labels").values()) == {3}
