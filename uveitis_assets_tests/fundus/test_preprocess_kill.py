"""Crash safety of a batch: SIGKILL at many points, and two processes at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uveitis_assets.fundus.configuration import STAGES, PreprocessStage
from uveitis_assets.fundus.image_stages import ImageStages
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.journal import read_stage_journal
from uveitis_assets.storage.append_only import AppendOnlyFile
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.fundus.preprocess_inputs import SMALL, artefact_bytes, land, land_many, with_normalization
from uveitis_assets_tests.patience import patience

N_IMAGES = 5
N_KILLS = 24


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start in milliseconds because the server has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RegisteredImage]]:
    raw = tmp_path_factory.mktemp("landed")
    store = ArtefactStore(root=raw, raw=raw)
    # One is set aside for what it shows, which only the run itself finds out.
    return raw, [*land_many(store, N_IMAGES - 1), land(store, "black.png", np.zeros((100, 100, 3), dtype=np.uint8))]


def run_batch(store: ArtefactStore, images: Sequence[RegisteredImage], workers: int) -> None:
    preprocess_batch(store, "lane", "b00001", lambda: images, SMALL, STAGES, workers=workers, code_version="1")


class Steps:
    """Counts the steps at which a killed process leaves something different behind; kills at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at
        self._install()

    def step(self, before_death: Callable[[], Any] = lambda: None) -> None:
        self.count += 1
        if self.count == self._kill_at:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)

    def _install(self) -> None:
        replace, unlink = Path.replace, Path.unlink
        append, begin = AppendOnlyFile.append, AppendOnlyFile.__init__
        places: dict[int, Path] = {}

        def counted_replace(path: Path, target: Path) -> Path:
            # The temporary file is complete, or torn, and not in its place yet.
            self.step(lambda: os.truncate(path, path.stat().st_size // 2))
            result = replace(path, target)
            self.step()
            return result

        def counted_append(journal: AppendOnlyFile, line: bytes) -> None:
            self.step(lambda: tear_off(places[id(journal)]))
            append(journal, line)
            self.step()

        def counted_unlink(path: Path, missing_ok: bool = False) -> None:
            self.step()
            unlink(path, missing_ok)

        def counted_begin(journal: AppendOnlyFile, path: Path) -> None:
            begin(journal, path)
            places[id(journal)] = path
            self.step()

        Path.replace, Path.unlink = counted_replace, counted_unlink  # type: ignore[assignment,method-assign]
        AppendOnlyFile.append, AppendOnlyFile.__init__ = counted_append, counted_begin  # type: ignore[method-assign]


def tear_off(journal: Path) -> None:
    """Append the part of a line that reached the disk before the kill."""
    with journal.open("ab") as stream:
        stream.write(b'\n{"image_id": "lane::image00", "row": {"ima')


def killed_run(
    store: ArtefactStore, images: Sequence[RegisteredImage], workers: int, kill_at: int | None, report: Any
) -> None:
    steps = Steps(kill_at)
    run_batch(store, images, workers)
    report.put(steps.count)


def recording_run(store: ArtefactStore, images: Sequence[RegisteredImage], report: Any) -> None:
    computed: list[tuple[str, str]] = []
    original = ImageStages.run

    def run(self: ImageStages, stage: PreprocessStage) -> dict[str, Any]:
        computed.append((self.image.image_id, stage))
        return original(self, stage)

    ImageStages.run = run  # type: ignore[method-assign]
    run_batch(store, images, 2)
    report.put(computed)


def in_process(processes: ForkServerContext, target: Callable[..., None], *arguments: Any) -> tuple[int, Any]:
    """Run in a process of its own; its exit code and what it reported (None after a kill)."""
    report = processes.SimpleQueue()
    process = processes.Process(target=target, args=(*arguments, report))
    process.start()
    process.join(patience(60))
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode, None if report.empty() else report.get()


@pytest.mark.parametrize("legacy_configuration", [False, True], ids=["fresh", "over another configuration"])
def test_a_batch_killed_anywhere_is_finished_with_the_same_bytes_and_repeats_nothing(
    tmp_path: Path,
    landed: tuple[Path, list[RegisteredImage]],
    processes: ForkServerContext,
    legacy_configuration: bool,
) -> None:
    raw, images = landed
    begun = tmp_path / "begun"
    if legacy_configuration:
        store = ArtefactStore(root=begun, raw=raw)
        old = with_normalization("grayworld")
        preprocess_batch(store, "lane", "b00001", lambda: images, old, STAGES, workers=1, code_version="0")
    else:
        begun.mkdir()

    def copy_of_begun(name: str) -> ArtefactStore:
        shutil.copytree(begun, tmp_path / name)
        return ArtefactStore(root=tmp_path / name, raw=raw)

    uninterrupted = copy_of_begun("uninterrupted")
    exit_code, n_steps = in_process(processes, killed_run, uninterrupted, images, 1, None)
    assert exit_code == 0
    expected = artefact_bytes(uninterrupted.root)
    assert n_steps > 10 * N_IMAGES

    generator = random.Random(20240607 + legacy_configuration)
    n_finished_before = []
    for kill_at in sorted(generator.sample(range(1, n_steps + 1), N_KILLS // 2)):
        store = copy_of_begun(f"killed{kill_at}")
        exit_code, _ = in_process(processes, killed_run, store, images, 1 + kill_at % 2, kill_at)
        assert exit_code == -signal.SIGKILL, kill_at
        finished = {
            (image_id, stage)
            for stage in STAGES
            for image_id, row in read_stage_journal(store.stage_journal("lane", stage, "b00001")).items()
            if row is not None
        }
        exit_code, computed = in_process(processes, recording_run, store, images)
        assert exit_code == 0, kill_at
        assert not finished & set(computed), f"killed at step {kill_at}: repeated {sorted(finished & set(computed))}"
        assert len(computed) <= 3 * N_IMAGES - len(finished)
        assert artefact_bytes(store.root) == expected, f"killed at step {kill_at}"
        n_finished_before.append(len(finished))
        shutil.rmtree(store.root)
    assert len(set(n_finished_before)) > 3, "the kills fell at too few different points"


def test_two_processes_with_the_same_batch_share_the_work_without_harm(
    tmp_path: Path, landed: tuple[Path, list[RegisteredImage]], processes: ForkServerContext
) -> None:
    raw, images = landed
    alone = ArtefactStore(root=tmp_path / "alone", raw=raw)
    run_batch(alone, images, 1)
    store = ArtefactStore(root=tmp_path / "together", raw=raw)
    report = processes.SimpleQueue()
    both = [processes.Process(target=recording_run, args=(store, images, report)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(patience(60))
        assert process.exitcode == 0
    amounts = sorted(len(report.get()) for _ in both)
    assert amounts == [0, 3 * (N_IMAGES - 1) + 1]  # the image that is set aside has no later stages
    assert artefact_bytes(store.root) == artefact_bytes(alone.root)
