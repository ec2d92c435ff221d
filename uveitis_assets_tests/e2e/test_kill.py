"""SIGKILL at many points of the manifest, of the labels and of a registration, and of the real command.

The next run finishes what a killed one left. Batches are held to this by ``stages/test_batch_run.py``.

Kill points are counted in steps that leave something on the disk, not in time, so that they fall all over the work on
any machine.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import polars as pl
import pytest

from uveitis_assets.components.fundus.lanes import load_lanes
from uveitis_assets.definitions import defs
from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.coco import build_coco_split
from uveitis_assets.labels.coco_summary import write_coco_summary
from uveitis_assets.landing.ledger import registered_images
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.landing.registration import register
from uveitis_assets.landing.splits_files import write_splits_files
from uveitis_assets.sample import write_uwf700
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.components.running_platform import Platform
from uveitis_assets_tests.e2e.installation import Installation
from uveitis_assets_tests.patience import patience
from uveitis_assets_tests.stages.disk_faults import count_steps, kill, spread

pytestmark = pytest.mark.e2e

N_IMAGES = 9
N_KILLS = 6

LANE = load_lanes()["uwf700"].model_copy(update={"tiling": TilingConfiguration(global_size=128, tile_size=96)})


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start in milliseconds because the server has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("sample") / "raw"
    write_uwf700(raw, N_IMAGES, 5, 320, 252, workers=1)
    return raw


def files(root: Path) -> dict[str, Path]:
    """Everything made below a data folder but locks, by relative path."""
    return {
        path.relative_to(root).as_posix(): path
        for folder in ("preproc", "labels_coco", "manifests", "splits", "index", "ledger")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def artefacts(root: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files(root).items() if not name.startswith("ledger/")}


def leftovers(root: Path) -> list[str]:
    return [name for name in files(root) if name.endswith((".partial", ".journal"))]


# What the processes do, as the assets and the registration do it -----------------------------------------------


def preprocess(store: ArtefactStore) -> None:
    images = registered_images(store, LANE, "b00001")
    preprocess_batch(store, LANE.name, "b00001", lambda: images, LANE.preprocess, STAGES, workers=1, code_version="1")


def make_manifest(store: ArtefactStore) -> None:
    store.remove_dead_partial_files()
    build_manifest_part(store, LANE, LANE.splits, "b00001")
    export_manifest(store, LANE, LANE.splits)
    write_splits_files(store, LANE.splits.name, LANE.splits.folds)


def make_labels(store: ArtefactStore) -> None:
    store.remove_dead_partial_files()
    manifest = read_manifest(store, LANE.name)
    for fold in range(LANE.splits.folds):
        for split in ("train", "val", "test"):
            summary = build_coco_split(
                store, LANE.name, store.raw_folder(LANE.folder), LANE.labels, load_class_map(),
                fold=fold, split=split, manifest=manifest, workers=2,
            )  # fmt: skip
            write_coco_summary(store, summary)


def register_all(store: ArtefactStore) -> None:
    store.remove_dead_partial_files()
    register(store, LANE)


@pytest.fixture
def registered(tmp_path: Path, sample: Path) -> Callable[[str], ArtefactStore]:
    """Makes copies of a registered data folder; all share the raw folder."""
    first = ArtefactStore(root=tmp_path / "registered", raw=sample)
    register(first, LANE)
    build_manifest_part(first, LANE, LANE.splits, "b00001")
    (first.root / "index").rename(tmp_path / "index of the patient key's maker")

    def copy(name: str) -> ArtefactStore:
        shutil.copytree(first.root, tmp_path / name, copy_function=shutil.copy2)
        return ArtefactStore(root=tmp_path / name, raw=sample)

    return copy


@pytest.mark.parametrize("work", [make_manifest, make_labels, register_all], ids=["manifest", "labels", "registration"])
def test_what_a_killed_run_wrote_in_part_is_written_whole_by_the_next_run(
    registered: Callable[[str], ArtefactStore], processes: ForkServerContext, work: Callable[..., None]
) -> None:
    def prepared(name: str) -> ArtefactStore:
        store = registered(name)
        if work is register_all:
            for path in (store.ledger_file(LANE.name), store.landing_problems_file(LANE.name)):
                path.unlink(missing_ok=True)
        if work is make_labels:
            make_manifest(store)
            preprocess(store)
        return store

    begun = prepared("begun")
    whole = ArtefactStore(root=begun.root.with_name("whole"), raw=begun.raw)
    shutil.copytree(begun.root, whole.root)
    n_steps = count_steps(processes, work, whole)
    assert n_steps >= (2 if work is register_all else 10)
    for kill_at in spread(N_KILLS, n_steps):
        store = ArtefactStore(root=begun.root.with_name(f"killed {kill_at}"), raw=begun.raw)
        shutil.copytree(begun.root, store.root)
        kill(processes, kill_at, work, store)
        work(store)
        assert artefacts(store.root) == artefacts(whole.root), kill_at
        assert batches(store) == batches(whole)
        assert leftovers(store.root) == []
        shutil.rmtree(store.root)


def batches(store: ArtefactStore) -> list[tuple[str, str, str]]:
    columns = ["image_id", "batch", "content_hash"]
    return [(row[0], row[1], row[2]) for row in pl.read_parquet(store.ledger_file(LANE.name))[columns].iter_rows()]


# The real command ---------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait until the condition holds; False when the process ends before."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.01)
    return False


COMMAND = (
    "dagster", "asset", "materialize", "-m", "uveitis_assets.definitions",
    "--select", '+key:"uwf700/tiles"', "--partition", "b00001",
)  # fmt: skip


@dataclass(frozen=True)
class Uninterrupted:
    """What the command makes when nothing disturbs it, and how to make installations that make the same."""

    environment: dict[str, str]
    artefacts: dict[str, bytes]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_uwf700(folder / "raw", 5, 5, 320, 252, workers=1)
    environment = {
        "UVEITIS_RAW": str(folder / "raw"),
        "UVEITIS_PATIENT_KEY_FILE": str(folder / "patient_key"),
        "UVEITIS_WORKERS": "2",
    }
    installation = Installation(folder, environment)
    with registered_platform(installation) as platform:
        assert platform.run("uwf700").success
    return Uninterrupted(environment, installation.artefacts())


@contextmanager
def registered_platform(installation: Installation) -> Iterator[Platform]:
    """The installation's platform in this process, with what has landed registered."""
    store = ArtefactStore(installation.data, installation.raw)
    with pytest.MonkeyPatch.context() as patch, installation.instance() as instance:
        for name, value in installation.variables().items():
            patch.setenv(name, value)
        platform = Platform(defs(), load_lanes(), store, instance)
        platform.register("uwf700")
        yield platform


def test_the_killed_command_finishes_when_it_is_given_again_even_twice_at_once(
    tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    user = Installation(tmp_path, uninterrupted.environment)
    with registered_platform(user):
        pass
    masks = user.data / "preproc" / "roi_masks"
    process = user.start(*COMMAND)
    has_mask = wait_for(lambda: masks.is_dir() and any(masks.glob("*.png")), process)
    assert has_mask, f"the command was over before it could be killed:\n{process.communicate()[0][-4000:]}"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=patience(60))
    both = [user.start(*COMMAND) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=patience(120))
        assert process.returncode == 0, output[-4000:]
    assert user.artefacts() == uninterrupted.artefacts
    assert leftovers(user.data) == []
