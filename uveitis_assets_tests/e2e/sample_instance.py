"""A Dagster instance with sample images and finished runs, to be viewed through the UI.

Everything is done by the product's own code in this process: landing, registration, the lanes' jobs. Lands two
deliveries for uwf700: a good one and one in which most files are broken. Starts no server.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg

from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.lanes import load_lanes
from uveitis_assets.landing.registration import register
from uveitis_assets.orchestration.partition_runs import range_tags
from uveitis_assets.sample import render_regular_fundus, write_fgadr, write_uwf700
from uveitis_assets.sample.files import encode_jpeg
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.e2e.clinic_definitions import CLINIC, CLINIC_PATIENTS, defs

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD_BATCH, BROKEN_BATCH = "b00001", "b00002"
_QUIET = {"loggers": {"console": {"config": {"log_level": "WARNING"}}}}


@dataclass(frozen=True)
class SampleInstance:
    """Folders of an instance and of its data."""

    home: Path
    data: Path

    @classmethod
    def create(cls, folder: Path) -> SampleInstance:
        """Make the folders; the instance has the project's settings, without the UI's greeting."""
        instance = cls(folder / "home", folder / "data")
        instance.home.mkdir(parents=True)
        (instance.data / "raw").mkdir(parents=True)
        settings = (REPOSITORY / "dagster.yaml").read_text()
        greeting = "" if "nux:" in settings else "\nnux:\n  enabled: false\n"
        (instance.home / "dagster.yaml").write_text(settings + greeting)
        return instance

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that point processes to the instance."""
        return {
            "DAGSTER_HOME": str(self.home),
            "UVEITIS_DATA": str(self.data),
            "UVEITIS_RAW": "",
            "UVEITIS_WORKERS": "2",
        }

    @contextmanager
    def opened(self) -> Iterator[dg.DagsterInstance]:
        """Point this process to the instance and open it."""
        with mock.patch.dict(os.environ, self.variables), dg.DagsterInstance.get() as instance:
            yield instance


def run_uwf700(sample: SampleInstance, n_images: int, size: tuple[int, int], n_label_partitions: int = 15) -> None:
    """Land images of (width, height) px, the last one truncated; run their batch and labels.

    The batch is one partition of a run, as with the Materialize button.
    """
    truncate(write_uwf700(sample.data / "raw", n_images, 0, *size)[-1])
    with sample.opened() as instance:
        lane = load_lanes()["uwf700"]
        _run_new_batches(lane, instance)
        keys = LaneKeys.of(lane)
        partitions = keys.fold_splits.get_partition_keys()
        _run(keys.labels_job, instance, tags=range_tags(partitions[0], partitions[n_label_partitions - 1]))


def land_broken_delivery(sample: SampleInstance) -> None:
    """Land three more uwf700 images of which an empty and a truncated one are broken, and run their batch."""
    folder = sample.data / "raw" / "uwf-700" / "Images" / "Uveitis"
    whole = write_uwf700(sample.data / "elsewhere", 1, 1, 780, 614)[0].read_bytes()
    (folder / "Uveitis-201.jpg").write_bytes(whole)
    (folder / "Uveitis-202.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "Uveitis-203.jpg").write_bytes(b"")
    with sample.opened() as instance:
        _run_new_batches(load_lanes()["uwf700"], instance)


def run_fgadr(sample: SampleInstance, n_images: int, size: int) -> None:
    """Land regular fundus images of size x size px and run their batch as a range, as sensors and the demo do."""
    write_fgadr(sample.data / "raw", n_images, 0, size)
    with sample.opened() as instance:
        lane = load_lanes()["fgadr"]
        keys = LaneKeys.of(lane)
        batches = list(register(ArtefactStore.from_environment(), lane).new_batches)
        instance.add_dynamic_partitions(keys.batches_name, batches)
        _run(keys.lane_job, instance, tags=range_tags(batches[0], batches[-1]))


def run_clinic(sample: SampleInstance) -> None:
    """Land images whose file names and table name patients, one of them truncated, and run them."""
    folder = sample.data / "raw" / CLINIC.folder
    folder.mkdir()
    with (folder / "patients.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "patient", "eye"])
        for number, (name, patient) in enumerate(CLINIC_PATIENTS.items()):
            path = folder / f"{name}_left.jpg"
            path.write_bytes(encode_jpeg(render_regular_fundus(number, 256).image_rgb, 90))
            table.writerow([path.name, patient, "left"])
    truncate(path)
    with sample.opened() as instance:
        _run_new_batches(CLINIC, instance)


def truncate(path: Path) -> None:
    """Cut a file to half its size."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _run_new_batches(lane: LaneConfiguration, instance: dg.DagsterInstance) -> None:
    keys = LaneKeys.of(lane)
    batches = list(register(ArtefactStore.from_environment(), lane).new_batches)
    instance.add_dynamic_partitions(keys.batches_name, batches)
    for batch in batches:
        _run(keys.lane_job, instance, partition_key=batch)


def _run(job: str, instance: dg.DagsterInstance, **options: Any) -> None:
    result = defs().resolve_job_def(job).execute_in_process(instance=instance, run_config=_QUIET, **options)
    assert result.success, f"{job} failed in run {result.run_id}"
