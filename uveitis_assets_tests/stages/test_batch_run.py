"""The contract of the batch engine, held by every family that uses it: nothing is lost, repeated, or left behind."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from uveitis_assets.stages.batch_outcome import BatchFailedError, BatchOutcome
from uveitis_assets.stages.batch_run import run_batch
from uveitis_assets.stages.index import Row, index_copy, read_stage_index
from uveitis_assets.stages.journal import StageJournal
from uveitis_assets.stages.suspect_files import report_damage
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.patience import patience
from uveitis_assets_tests.stages.batch_users import (
    BATCH,
    GROUP_SCHEMA,
    USERS,
    BatchUser,
    Groups,
    GroupStage,
    GroupTask,
    GroupWork,
)
from uveitis_assets_tests.stages.disk_faults import count_steps, fill_disk, kill, make_read_only, spread, tear_off

Computed = set[tuple[str, str]]

WITH_JOURNALS = pytest.mark.parametrize(
    "user", [user for user in USERS if user.has_journal], indirect=True, ids=lambda user: type(user).__name__
)


@pytest.fixture(scope="module", params=USERS, ids=lambda user: type(user).__name__)
def user(request: pytest.FixtureRequest) -> BatchUser:
    found: BatchUser = request.param
    return found


@pytest.fixture(scope="module")
def landed(user: BatchUser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the family's inputs."""
    store = store_at(tmp_path_factory.mktemp("landed"))
    user.land(store)
    return store.root


@pytest.fixture(scope="module")
def made(user: BatchUser, landed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the family's inputs and all that a whole run makes of them."""
    root = tmp_path_factory.mktemp("made") / "root"
    shutil.copytree(landed, root)
    user.run(store_at(root))
    return root


@pytest.fixture
def expected(user: BatchUser, made: Path) -> dict[str, bytes]:
    return user.artefacts(store_at(made))


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], ArtefactStore]:
    """Copies a root, each time to another place."""
    number = iter(range(10_000))

    def copy_of(root: Path) -> ArtefactStore:
        place = tmp_path / f"copy{next(number)}"
        shutil.copytree(root, place)
        return store_at(place)

    return copy_of


@pytest.fixture
def computed(user: BatchUser, monkeypatch: pytest.MonkeyPatch) -> Computed:
    """Every item and stage that is computed."""
    seen: Computed = set()
    monkeypatch.setattr(user.work, "run", recording(user, seen))
    return seen


def store_at(root: Path) -> ArtefactStore:
    return ArtefactStore(root, root / "raw")


def recording(user: BatchUser, seen: Computed) -> Callable[[Any, str], Any]:
    original = user.work.run

    def run(work: Any, stage: str) -> Any:
        seen.add((user.item_of(work), stage))
        return original(work, stage)

    return run


def leftovers(user: BatchUser, store: ArtefactStore) -> list[str]:
    return [name for name in user.artefacts(store) if name.endswith((".partial", ".journal"))]


def stamps(user: BatchUser, store: ArtefactStore) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in user.files(store)}


# Kills and other processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start in milliseconds because the server has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "uveitis_assets.detection.inference.prediction_batch"])
    return context


def recorded_run(user: BatchUser, store: ArtefactStore, report: Any) -> None:
    seen: Computed = set()
    user.work.run = recording(user, seen)  # type: ignore[method-assign]
    store.remove_dead_partial_files()
    user.run(store)
    report.put(seen)


@pytest.mark.parametrize("former", [None, "0"], ids=["fresh", "over another version"])
def test_a_batch_killed_anywhere_is_finished_with_the_same_bytes_and_repeats_nothing(
    user: BatchUser,
    landed: Path,
    expected: dict[str, bytes],
    processes: ForkServerContext,
    copy: Callable[[Path], ArtefactStore],
    computed: Computed,
    former: str | None,
) -> None:
    begun = copy(landed)
    if former is not None:
        user.run(begun, version=former)
    n_steps = count_steps(processes, user.run, copy(begun.root), "1", 1)
    n_finished = set()
    n_kills = user.kills or (n_steps if former is None else 24)
    for kill_at in spread(n_kills, n_steps):
        store = copy(begun.root)
        kill(processes, kill_at, user.run, store, "1", 1 + kill_at % 2)
        finished = user.finished(store, expected)
        n_finished.add(len(finished))
        computed.clear()
        store.remove_dead_partial_files()
        if former is not None and kill_at % 3 == 0:
            # Who goes back to the former version must not find files of both.
            user.run(store, version=former)
            assert user.artefacts(store) == user.artefacts(begun), f"killed at step {kill_at}"
        else:
            user.run(store)
            assert not finished & computed, f"killed at step {kill_at}: repeated {sorted(finished & computed)}"
            assert user.artefacts(store) == expected, f"killed at step {kill_at}"
        shutil.rmtree(store.root)
    assert len(n_finished) > 3, "the kills fell at too few different points"


def test_of_two_processes_with_the_same_batch_the_second_finds_it_done(
    user: BatchUser,
    landed: Path,
    expected: dict[str, bytes],
    processes: ForkServerContext,
    copy: Callable[[Path], ArtefactStore],
) -> None:
    store = copy(landed)
    report = processes.SimpleQueue()
    both = [processes.Process(target=recorded_run, args=(user, store, report)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(patience(60))
        assert process.exitcode == 0
    idle, busy = sorted((report.get() for _ in both), key=len)
    assert idle == set()
    assert busy.issuperset((item_id, stage) for item_id in user.usable for stage in user.stages)
    assert user.artefacts(store) == expected


def test_a_run_waits_for_one_of_the_batch_that_held_its_items_before(
    user: BatchUser,
    landed: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = copy(landed)
    entries = [(user.usable[0], "b00000", "superseded"), *((item_id, BATCH, "live") for item_id in user.usable)]
    store.ledger_file(user.lane).parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(entries, schema=["image_id", "batch", "state"], orient="row").write_parquet(
        store.ledger_file(user.lane)
    )
    waits = threading.Event()
    original = ArtefactStore.lock

    def lock(self: ArtefactStore, name: str) -> Any:
        if threading.current_thread() is later and name == user.lock_name("b00000"):
            waits.set()
        return original(self, name)

    monkeypatch.setattr(ArtefactStore, "lock", lock)
    later = threading.Thread(target=user.run, args=(store,))
    with store.lock(user.lock_name("b00000")):
        later.start()
        assert waits.wait(patience(30))
        assert user.artefacts(store) == {}
    later.join(patience(30))
    assert user.artefacts(store) == expected


# The disk -----------------------------------------------------------------------------------------------------


def test_an_item_without_room_on_the_disk_is_named_after_the_others_are_done(
    user: BatchUser,
    landed: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    computed: Computed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, unlucky = copy(landed), user.usable[1]
    with monkeypatch.context() as patch:
        fill_disk(patch, lambda path: artefact_key(unlucky) in path.as_posix())
        with pytest.raises(
            BatchFailedError, match=f"1 of .* failed, the others are done.*\n{unlucky}: OSError"
        ) as caught:
            user.run(store)
    assert [item_id for item_id, _ in caught.value.failures] == [unlucky]
    assert leftovers(user, store) == []
    assert user.artefacts_of(store, unlucky) == []
    computed.clear()
    user.run(store)
    assert computed == {(unlucky, stage) for stage in user.stages}
    assert user.artefacts(store) == expected


@WITH_JOURNALS
def test_a_journal_without_room_on_the_disk_is_named_and_the_run_is_continued(
    user: BatchUser,
    landed: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = copy(landed)
    with monkeypatch.context() as patch:
        fill_disk(patch, lambda path: path.suffix == ".journal")
        with pytest.raises(OSError, match=rf"No space left on device: .*{BATCH}\.journal"):
            user.run(store)
    user.run(store)
    assert user.artefacts(store) == expected


def test_an_index_without_room_on_the_disk_is_named_and_nothing_is_computed_again(
    user: BatchUser,
    landed: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    computed: Computed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = copy(landed)
    with monkeypatch.context() as patch:
        fill_disk(patch, lambda path: path.suffix == ".parquet")
        with pytest.raises(OSError, match=rf"No space left on device: .*{BATCH}\.parquet"):
            user.run(store)
    computed.clear()
    user.run(store)
    assert computed == set()
    assert user.artefacts(store) == expected


def test_a_read_only_folder_is_named_and_loses_nothing(
    user: BatchUser,
    landed: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = copy(landed)
    user.run(store, version="0")
    before = user.artefacts(store)
    with monkeypatch.context() as patch:
        make_read_only(patch, store.root)
        with pytest.raises(OSError, match=f"Read-only file system: '{store.root}"):
            user.run(store)
    assert user.artefacts(store) == before
    user.run(store)
    assert user.artefacts(store) == expected


# Files that broke ---------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit of a file, which keeps its size."""
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(place * len(data)))] ^= 1
    path.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


def files_by_stage(user: BatchUser, store: ArtefactStore, item_id: str) -> dict[str, list[Path]]:
    """An item's files as the indexes of the stages record them."""
    return {
        stage: [
            store.root / file["name"] for file in read_stage_index(user.index(store, stage))[item_id]["files"] or ()
        ]
        for stage in user.stages
    }


def test_the_indexes_record_size_and_checksum_of_every_artefact(
    user: BatchUser, made: Path, expected: dict[str, bytes]
) -> None:
    rows = [row for stage in user.stages for row in read_stage_index(user.index(store_at(made), stage)).values()]
    recorded = {file["name"]: (file["size"], file["crc32"]) for row in rows for file in row["files"] or ()}
    assert recorded == {
        name: (len(data), zlib.crc32(data)) for name, data in expected.items() if not name.startswith("index/")
    }


@pytest.mark.parametrize("damage", [cut, empty, delete])
def test_every_broken_file_is_found_made_again_and_named(
    user: BatchUser,
    made: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    computed: Computed,
    damage: Callable[[Path], None],
) -> None:
    store, item_id = copy(made), user.usable[1]
    for stage, paths in files_by_stage(user, store, item_id).items():
        assert paths
        for path in paths:
            damage(path)
            computed.clear()
            found = user.run(store)
            assert computed == {(item_id, stage)}, path
            assert user.artefacts(store) == expected
            assert {name: list(report.repaired) for name, report in found.items() if report.repaired} == {
                stage: [item_id]
            }
            name = path.relative_to(store.root).as_posix()
            size = 0 if damage is empty else len(expected[name]) // 2
            what = "no file" if damage is delete else str(size)
            assert found[stage].repaired[item_id] == f"{name}: expected {len(expected[name])} bytes, found {what}"
    assert all(report == (({}, None)) for report in user.run(store).values())


def test_a_file_with_a_changed_byte_is_made_again_once_a_reader_has_reported_it(
    user: BatchUser, made: Path, expected: dict[str, bytes], copy: Callable[[Path], ArtefactStore], computed: Computed
) -> None:
    store, item_id = copy(made), user.usable[1]
    for stage, paths in files_by_stage(user, store, item_id).items():
        flip(paths[-1])
        sound = files_by_stage(user, store, user.usable[2])[stage][0]
        assert report_damage(store, paths[-1])
        assert report_damage(store, sound)
        computed.clear()
        report = user.run(store)[stage]
        assert computed == {(item_id, stage)}
        assert "expected CRC-32" in report.repaired[item_id]
        assert user.artefacts(store) == expected
    assert not report_damage(store, store.root / "preproc" / "of no index.png")


@pytest.mark.parametrize("damage", [cut, empty, flip, "foreign", "first byte", "last quarter"])
def test_a_damaged_index_heals_and_nothing_is_computed_again(
    user: BatchUser,
    made: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    computed: Computed,
    damage: Callable[[Path], None] | str,
) -> None:
    store = copy(made)
    for stage in user.stages:
        index = user.index(store, stage)
        if damage == "foreign":
            index.write_bytes(b"PAR1 and then nothing")
        elif isinstance(damage, str):
            flip(index, {"first byte": 0.0, "last quarter": 0.75}[damage])
        else:
            damage(index)
        report = user.run(store)[stage]
        assert computed == set()
        assert user.artefacts(store) == expected
        assert report.index_finding is not None
        assert f"{index}: expected a stage index, found " in report.index_finding
        assert report.repaired == {}
        assert user.run(store)[stage].index_finding is None


def test_an_index_that_is_damaged_with_its_copy_is_named_and_made_again(
    user: BatchUser, made: Path, expected: dict[str, bytes], copy: Callable[[Path], ArtefactStore]
) -> None:
    store = copy(made)
    for stage in user.stages:
        for path in (user.index(store, stage), index_copy(user.index(store, stage))):
            cut(path)
        finding = user.run(store)[stage].index_finding
        assert finding is not None
        assert f"{BATCH}.parquet: expected a stage index" in finding
        assert "there is no intact copy of it" in finding
        assert user.artefacts(store) == expected


def as_the_version_before(user: BatchUser, store: ArtefactStore) -> None:
    """Leave the indexes without files, checksums and copies."""
    for stage in user.stages:
        index = user.index(store, stage)
        metadata = {name: value for name, value in pl.read_parquet_metadata(index).items() if name == "reference_color"}
        pl.read_parquet(index).drop("files").write_parquet(index, metadata=metadata)
        index_copy(index).unlink()


def test_finished_work_of_the_version_before_is_recognised_and_recorded(
    user: BatchUser, made: Path, expected: dict[str, bytes], copy: Callable[[Path], ArtefactStore], computed: Computed
) -> None:
    store = copy(made)
    as_the_version_before(user, store)
    assert all(report == ({}, None) for report in user.run(store).values())
    assert computed == set()
    assert user.artefacts(store) == expected


@pytest.mark.parametrize("damage", [cut, empty])
def test_files_that_broke_under_the_version_before_are_made_again(
    user: BatchUser,
    made: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    computed: Computed,
    damage: Callable[[Path], None],
) -> None:
    store, item_id = copy(made), user.usable[2]
    broken = {stage: paths[-1] for stage, paths in files_by_stage(user, store, item_id).items()}
    checked = {stage: path for stage, path in broken.items() if damage is empty or path.suffix in (".png", ".json")}
    as_the_version_before(user, store)
    for path in checked.values():
        damage(path)
    found = user.run(store)
    assert computed == {(item_id, stage) for stage in checked}
    assert {stage for stage, report in found.items() if report.repaired} == set(checked)
    assert user.artefacts(store) == expected


@WITH_JOURNALS
@pytest.mark.parametrize("damage", ["torn", "no text"])
def test_a_damaged_journal_costs_only_the_lines_that_are_damaged(
    user: BatchUser,
    made: Path,
    expected: dict[str, bytes],
    copy: Callable[[Path], ArtefactStore],
    computed: Computed,
    damage: str,
) -> None:
    store, stage = copy(made), user.stages[-1]
    rows = read_stage_index(user.index(store, stage))
    journal = store.stage_journal(user.lane, stage, BATCH)
    user.index(store, stage).unlink()
    lost = user.usable[0]
    with StageJournal(journal) as writer:
        for item_id, row in rows.items():
            if item_id != lost:
                writer.finish(item_id, row)
    if damage == "torn":
        tear_off(journal)
    else:
        journal.write_bytes(journal.read_bytes() + b"\n\xff\x00\x80\n[1]\n{}\n")
    user.run(store)
    assert computed == {(lost, stage)}
    assert user.artefacts(store) == expected


# Items --------------------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_touches_nothing(
    user: BatchUser, made: Path, copy: Callable[[Path], ArtefactStore], computed: Computed
) -> None:
    store = copy(made)
    user.set_aside(store, user.usable[0])
    user.run(store)
    before = stamps(user, store)
    computed.clear()
    user.run(store)
    assert computed == set()
    assert stamps(user, store) == before


def test_an_item_that_is_set_aside_loses_its_artefacts_and_no_other_is_touched(
    user: BatchUser, made: Path, copy: Callable[[Path], ArtefactStore], computed: Computed
) -> None:
    store, refused = copy(made), user.usable[1]
    before = stamps(user, store)
    user.set_aside(store, refused)
    user.run(store)
    assert computed == set()
    assert user.artefacts_of(store, refused) == []
    after = stamps(user, store)
    indexes = {user.index(store, stage) for stage in user.stages}
    assert {path for path in before if after.get(path) != before[path]} - indexes == {
        path for path in before if artefact_key(refused) in path.as_posix()
    }


def test_an_item_that_leaves_the_batch_leaves_nothing_behind(
    user: BatchUser, landed: Path, made: Path, copy: Callable[[Path], ArtefactStore], computed: Computed
) -> None:
    fresh, store = copy(landed), copy(made)
    for root in (fresh, store):
        user.take_away(root, user.usable[2])
    user.run(fresh)
    computed.clear()
    user.run(store)
    assert computed == set()
    assert user.artefacts(store) == user.artefacts(fresh)


def test_an_item_that_another_batch_has_now_keeps_its_artefacts(
    user: BatchUser, made: Path, expected: dict[str, bytes], copy: Callable[[Path], ArtefactStore]
) -> None:
    store, moved = copy(made), user.usable[2]
    kept = user.artefacts_of(store, moved)
    entries = [(moved, BATCH, "superseded"), (moved, "b00002", "live")]
    entries += [(item_id, BATCH, "live") for item_id in user.usable if item_id != moved]
    store.ledger_file(user.lane).parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(entries, schema=["image_id", "batch", "state"], orient="row").write_parquet(
        store.ledger_file(user.lane)
    )
    user.take_away(store, moved)
    user.run(store)
    after = user.artefacts(store)
    assert kept
    assert {name: after[name] for name in kept} == {name: expected[name] for name in kept}


def test_one_worker_and_several_write_the_same_bytes(
    user: BatchUser, landed: Path, expected: dict[str, bytes], copy: Callable[[Path], ArtefactStore]
) -> None:
    for workers in (1, 4):
        store = copy(landed)
        user.run(store, workers=workers)
        assert user.artefacts(store) == expected


# What a family may get wrong ----------------------------------------------------------------------------------


def run_groups(store: ArtefactStore, begin: Callable[[], GroupTask], workers: int = 1) -> BatchOutcome[GroupStage]:
    return run_batch(store, "groups", BATCH, begin, lock_name=Groups().lock_name, workers=workers)


def test_an_item_whose_work_cannot_begin_fails_alone(store: ArtefactStore) -> None:
    class Unready(GroupTask):
        def start(self, item: Any, rows: Any, prepared: Any) -> Any:
            if item.item_id == "groups::two":
                raise FileNotFoundError("no such device")
            return super().start(item, rows, prepared)

    Groups().land(store)
    with pytest.raises(BatchFailedError, match=r"1 of 4 groups failed.*\ngroups::two: FileNotFoundError") as caught:
        run_groups(store, lambda: Unready(store, "1"))
    counts = caught.value.outcome.stages["reports"]
    assert (counts.n_images, counts.n_done, counts.n_failed, counts.n_quarantined) == (4, 2, 1, {"bad_label": 1})


def test_a_stage_whose_index_has_no_reasons_cannot_quarantine(store: ArtefactStore) -> None:
    schema = pl.Schema({name: kind for name, kind in GROUP_SCHEMA.items() if not name.startswith("quarantine")})
    Groups().land(store)
    with pytest.raises(TypeError, match="sums cannot list groups::words as bad_label: no such column"):
        run_groups(store, lambda: GroupTask(store, "1", schema))


def test_two_items_with_one_artefact_name_are_refused(store: ArtefactStore) -> None:
    class Twice(GroupTask):
        def __init__(self, store: ArtefactStore, version: str) -> None:
            super().__init__(store, version)
            self.items = [*self.items, replace(self.items[0], item_id=self.items[0].key)]

    Groups().land(store)
    with pytest.raises(ValueError, match="groups__one: 2 groups of the batch share this artefact name"):
        run_groups(store, lambda: Twice(store, "1"))
    with pytest.raises(ValueError, match="at least one worker, found 0"):
        run_groups(store, lambda: GroupTask(store, "1"), workers=0)


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_counts_the_items_that_have_something_to_do(store: ArtefactStore, workers: int) -> None:
    Groups().land(store)
    seen: list[tuple[int, int]] = []
    run_batch(
        store, "groups", BATCH, lambda: GroupTask(store, "1"), lock_name=Groups().lock_name,
        workers=workers, progress=lambda done, to_do: seen.append((done, to_do)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_as_many_items_are_computed_at_once_as_there_are_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, n_workers = store_at(tmp_path), 20
    for number in range(n_workers):
        path = store.raw / "groups" / f"g{number}" / "0.txt"
        path.parent.mkdir(parents=True)
        path.write_text(str(number))
    all_at_work = threading.Barrier(n_workers, timeout=patience(20))
    original = GroupWork.run

    def run(work: GroupWork, stage: GroupStage) -> Row:
        if stage == "sums":
            all_at_work.wait()
        return original(work, stage)

    monkeypatch.setattr(GroupWork, "run", run)
    Groups().run(store, workers=n_workers)
    assert len(list((store.root / "groups").glob("*.report"))) == n_workers
