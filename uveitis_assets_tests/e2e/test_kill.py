"""SIGKILL at many points of a batch, of the manifest, of the labels and of a registration: the next run finishes.

Kill points are counted in artefacts that have appeared, not in time, so that they fall all over the work on any
machine.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from uveitis_assets.components.fundus.lanes import load_lanes
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
from uveitis_assets_tests.e2e.installation import Installation
from uveitis_assets_tests.patience import patience

pytestmark = pytest.mark.e2e

N_IMAGES = 9
KILL_AT = (1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 66, 78)
"""Numbers of artefacts after which a batch of nine images, about ten files each, is killed."""

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


def preprocess(store: ArtefactStore, workers: int, report: Any) -> None:
    outcome = preprocess_batch(
        store,
        LANE.name,
        "b00001",
        lambda: registered_images(store, LANE, "b00001"),
        LANE.preprocess,
        STAGES,
        workers=workers,
        code_version="1",
    )
    report.put({stage: (result.n_done, result.n_skipped) for stage, result in outcome.stages.items()})


def make_manifest(store: ArtefactStore, _workers: int, report: Any) -> None:
    store.remove_dead_partial_files()
    build_manifest_part(store, LANE, LANE.splits, "b00001")
    export_manifest(store, LANE, LANE.splits)
    write_splits_files(store, LANE.splits.name, LANE.splits.folds)
    report.put(None)


def make_labels(store: ArtefactStore, workers: int, report: Any) -> None:
    store.remove_dead_partial_files()
    manifest = read_manifest(store, LANE.name)
    for fold in range(LANE.splits.folds):
        for split in ("train", "val", "test"):
            summary = build_coco_split(
                store, LANE.name, store.raw_folder(LANE.folder), LANE.labels, load_class_map(),
                fold=fold, split=split, manifest=manifest, workers=workers,
            )  # fmt: skip
            write_coco_summary(store, summary)
    report.put(None)


def register_all(store: ArtefactStore, _workers: int, report: Any) -> None:
    store.remove_dead_partial_files()
    register(store, LANE)
    report.put(None)


def run_to_the_end(
    processes: ForkServerContext, work: Callable[..., None], store: ArtefactStore, workers: int = 2
) -> Any:
    report = processes.SimpleQueue()
    process = processes.Process(target=work, args=(store, workers, report))
    process.start()
    process.join(patience(60))
    assert process.exitcode == 0
    return report.get()


def dying(store: ArtefactStore, work: Callable[..., None], kill_at: int, torn: bool, workers: int, report: Any) -> None:
    """Do the work, counting files that come into their places; kill this process around the one of that number."""
    replace = Path.replace
    count = 0
    turn = threading.Lock()

    def counted(path: Path, target: Path) -> Path:
        nonlocal count
        with turn:
            count += 1
            if count == kill_at:
                if torn:
                    os.truncate(path, path.stat().st_size // 2)
                else:
                    replace(path, target)
                os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace = counted  # type: ignore[assignment,method-assign]
    work(store, workers, report)


def killed(
    processes: ForkServerContext, work: Callable[..., None], store: ArtefactStore, kill_at: int, torn: bool
) -> bool:
    """Run until death; False when the work ended before."""
    report = processes.SimpleQueue()
    process = processes.Process(target=dying, args=(store, work, kill_at, torn, 2, report))
    process.start()
    process.join(patience(60))
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.fixture
def registered(tmp_path: Path, sample: Path, processes: ForkServerContext) -> Callable[[str], ArtefactStore]:
    """Makes copies of a registered data folder; all share the raw folder."""
    first = ArtefactStore(root=tmp_path / "registered", raw=sample)
    register(first, LANE)
    build_manifest_part(first, LANE, LANE.splits, "b00001")
    (first.root / "index").rename(tmp_path / "index of the patient key's maker")

    def copy(name: str) -> ArtefactStore:
        shutil.copytree(first.root, tmp_path / name, copy_function=shutil.copy2)
        return ArtefactStore(root=tmp_path / name, raw=sample)

    return copy


def test_a_batch_killed_at_many_points_finishes_with_the_same_bytes_and_repeats_no_image(
    registered: Callable[[str], ArtefactStore], processes: ForkServerContext
) -> None:
    whole = registered("whole")
    run_to_the_end(processes, preprocess, whole)
    expected = artefacts(whole.root)
    n_kills, amounts = 0, set()
    for number, kill_at in enumerate(KILL_AT):
        store = registered(f"killed{kill_at}")
        assert killed(processes, preprocess, store, kill_at, torn=number % 2 == 1), kill_at
        n_kills += 1
        journals = {stage: store.stage_journal(LANE.name, stage, "b00001") for stage in STAGES}
        finished = {
            stage: {name for name, row in journal_rows(path).items() if row is not None}
            for stage, path in journals.items()
        }
        before = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in files(store.root).items()}
        outcome = run_to_the_end(processes, preprocess, store)
        for stage in STAGES:
            assert outcome[stage] == (N_IMAGES - len(finished[stage]), len(finished[stage])), (kill_at, stage)
        after = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in files(store.root).items()}
        for name in finished["tiles"]:
            key = name.replace("::", "__")
            own = [file for file in before if f"/{key}." in file or f"/{key}/" in file]
            assert len(own) >= 8
            assert {file: after[file] for file in own} == {file: before[file] for file in own}
        assert artefacts(store.root) == expected, f"killed after {kill_at} artefacts"
        assert leftovers(store.root) == []
        amounts.add(sum(len(names) for names in finished.values()))
        shutil.rmtree(store.root)
    assert n_kills == len(KILL_AT)
    assert len(amounts) > 5, "the kills fell at too few different points"


def journal_rows(path: Path) -> dict[str, Any]:
    from uveitis_assets.stages.journal import read_stage_journal

    return dict(read_stage_journal(path))


@pytest.mark.parametrize("work", [make_manifest, make_labels, register_all], ids=["manifest", "labels", "registration"])
def test_killed_books_are_written_whole_by_the_next_run(
    registered: Callable[[str], ArtefactStore], processes: ForkServerContext, work: Callable[..., None]
) -> None:
    def prepared(name: str) -> ArtefactStore:
        store = registered(name)
        if work is register_all:
            for path in (store.ledger_file(LANE.name), store.landing_problems_file(LANE.name)):
                path.unlink(missing_ok=True)
        if work is make_labels:
            run_to_the_end(processes, make_manifest, store)
            run_to_the_end(processes, preprocess, store)
        return store

    begun = prepared("begun")
    whole = ArtefactStore(root=begun.root.with_name("whole"), raw=begun.raw)
    shutil.copytree(begun.root, whole.root)
    run_to_the_end(processes, work, whole)
    n_kills = 0
    for kill_at in (1, 2, 3, 5, 8, 13, 21, 34):
        for torn in (True, False):
            store = ArtefactStore(root=begun.root.with_name(f"killed {kill_at} {torn}"), raw=begun.raw)
            shutil.copytree(begun.root, store.root)
            n_kills += killed(processes, work, store, kill_at, torn)
            run_to_the_end(processes, work, store)
            assert artefacts(store.root) == artefacts(whole.root), (kill_at, torn)
            assert batches(store) == batches(whole)
            assert leftovers(store.root) == []
            shutil.rmtree(store.root)
    assert n_kills >= (2 if work is register_all else 8)


def batches(store: ArtefactStore) -> list[tuple[str, str, str]]:
    columns = ["image_id", "batch", "content_hash"]
    return [(row[0], row[1], row[2]) for row in pl.read_parquet(store.ledger_file(LANE.name))[columns].iter_rows()]


# The real command ---------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait until the condition holds; False when the process ends before."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
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
    installation.succeed("uveitis-assets", "register", "uwf700")
    installation.succeed(*COMMAND)
    return Uninterrupted(environment, installation.artefacts())


def test_the_killed_command_finishes_when_it_is_given_again(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    user = Installation(tmp_path, uninterrupted.environment)
    user.succeed("uveitis-assets", "register", "uwf700")
    masks = user.data / "preproc" / "roi_masks"

    def has_masks(n_images: int) -> bool:
        return masks.is_dir() and len(list(masks.glob("*.png"))) >= n_images

    n_kills = 0
    for n_images in (1, 3):
        process = user.start(*COMMAND)
        if wait_for(partial(has_masks, n_images), process):
            os.killpg(process.pid, signal.SIGKILL)
            n_kills += 1
        process.communicate(timeout=patience(60))
    assert n_kills == 2, "the command was over before it could be killed"
    user.succeed(*COMMAND)
    assert user.artefacts() == uninterrupted.artefacts
    assert leftovers(user.data) == []


def test_two_commands_with_the_same_batch_at_once_do_no_harm(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    user = Installation(tmp_path, uninterrupted.environment)
    user.succeed("uveitis-assets", "register", "uwf700")
    both = [user.start(*COMMAND) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=patience(120))
        assert process.returncode == 0, output[-4000:]
    assert user.artefacts() == uninterrupted.artefacts
    assert leftovers(user.data) == []
