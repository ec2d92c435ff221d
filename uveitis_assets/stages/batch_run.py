"""Brings the stages of a batch of items up to date: in threads, resumable after any kill.

A stage of an item is done when a row with its content hash and fingerprint stands in the stage's index or journal and
its files have the recorded sizes; a damaged file that a later stage reads is made again in the same run. Rows go to the
journal after the files are in place; indexes are written at the end. A ``BatchTask`` supplies the items and computes
them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Generic

from uveitis_assets.landing.quarantine import TRANSIENT_REASONS, QuarantineError
from uveitis_assets.stages.artefact_files import FILES
from uveitis_assets.stages.batch_files import BatchFiles
from uveitis_assets.stages.batch_outcome import FAILURES_SHOWN, BatchFailedError, BatchOutcome, Name, StageOutcome
from uveitis_assets.stages.batch_ownership import BatchOwnership, hold_batch, ids_owned_by_other_batches
from uveitis_assets.stages.batch_task import BatchItem, BatchTask, DamagedStageError, Job, Source
from uveitis_assets.stages.batch_threads import run_jobs
from uveitis_assets.stages.index import Row, index_copy
from uveitis_assets.stages.journal import StageJournal
from uveitis_assets.stages.suspect_files import forget_suspects, note_suspects
from uveitis_assets.storage.files import TEMPORARY_SUFFIX
from uveitis_assets.storage.store import ArtefactStore, artefact_identity, artefact_key


def run_batch(
    store: ArtefactStore,
    lane: str,
    batch: str,
    begin: Callable[[], BatchTask[Source, Name]],
    *,
    lock_name: Callable[[str], str],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> BatchOutcome[Name]:
    """Brings the requested stages of all items of a batch up to date, in one pass over each item.

    Waits for runs of this batch and of the former batches of its items: a run that began before an item was replaced
    must not overwrite the new content's artefacts with the former's. A second process that runs the same batch waits
    and then finds it done. Artefacts of items that left the batch are removed, those of the requested stages, unless
    another batch has the item now.

    Args:
        store: where ledger and locks are.
        lane: the lane's name.
        batch: the batch's key.
        begin: makes the task, once no other run can touch the batch's artefacts.
        lock_name: name of the lock of a batch; families that write different files take different locks.
        workers: threads over items; 1 is the calling thread where the task prepares nothing beside it.
        progress: called with items done and items to do, from this thread.

    Raises:
        BatchFailedError: items failed for other reasons than quarantine; all others are finished and recorded.
        ValueError: two items with the same key, or workers < 1.
        OSError: no disk space for a journal or an index; what was finished before stays.
    """
    if workers < 1:
        raise ValueError(f"expected at least one worker, found {workers}")
    with hold_batch(store, lane, batch, lock_name) as ownership:
        started = time.perf_counter()
        task = begin()
        with task.running(), ExitStack() as stack:
            run = _BatchRun(store, task)
            run.remove_partial_files()
            run.remove_left(store, lane, batch, ownership)
            jobs = run.plan()
            if jobs:
                run.open_journals(stack)
            while jobs:
                run.execute(jobs, workers, progress)
                jobs = run.take_repairs()
            run.write_indexes()
            outcome = run.outcome(time.perf_counter() - started)
    if run.failures:
        failures = sorted(run.failures, key=lambda failure: failure[0])
        raise BatchFailedError(
            task.title, failures, outcome, n_items=len(task.items), items_name=task.items_name
        ) from ExceptionGroup(f"failed {task.items_name}", [error for _, error in failures[:FAILURES_SHOWN]])
    return outcome


class _BatchRun(Generic[Source, Name]):
    """State of one run over a batch."""

    def __init__(self, store: ArtefactStore, task: BatchTask[Source, Name]) -> None:
        for key, count in Counter(item.key for item in task.items).items():
            if count > 1:
                raise ValueError(
                    f"{key}: {count} {task.items_name} of the batch share this artefact name; rename all but one"
                )
        self._task = task
        self.failures: list[tuple[str, Exception]] = []
        self._journals: dict[Name, StageJournal] = {}
        self._outcomes = {stage: StageOutcome(n_images=len(task.items)) for stage in task.requested}
        self._outcome_lock = threading.Lock()
        self._indexed: dict[Name, dict[str, Row]] = {}
        self._earlier: dict[Name, dict[str, Row]] = {}
        for stage, records in task.stages.items():
            indexed, finding = records.read_index()
            self._indexed[stage] = {item_id: {FILES: None} | row for item_id, row in indexed.items()}
            earlier = task.recorded_rows(stage, self._indexed[stage])
            self._earlier[stage] = {item_id: {FILES: None} | row for item_id, row in earlier.items()}
            if stage in self._outcomes:
                self._outcomes[stage].index_finding = finding
        self._files = BatchFiles(store, task)
        self._repairs: list[Job[Source, Name]] = []
        self._rows: dict[Name, dict[str, Row]] = {stage: {} for stage in task.requested}
        # Stages with a journal: one that a killed run left, or ours.
        self._touched = {
            stage: (journal := task.stages[stage].journal) is not None and journal.exists() for stage in task.requested
        }

    # What is there ----------------------------------------------------------------------------------------

    def remove_partial_files(self) -> None:
        """Removes the unfinished files of a killed run of this batch, which left a journal."""
        if not any(self._touched.values()):
            return
        self._task.remove_partial_files()
        for stage in self._task.requested:
            index = self._task.stages[stage].index
            for folder in (index.parent, index_copy(index).parent):
                for path in sorted(folder.glob(f".{index.name}.*{TEMPORARY_SUFFIX}")):
                    path.unlink(missing_ok=True)

    def remove_left(self, store: ArtefactStore, lane: str, batch: str, ownership: BatchOwnership) -> None:
        """Removes the files of items that left the batch, in the requested stages."""
        listed = {
            item_id for stage in self._task.requested for item_id in (*self._indexed[stage], *self._earlier[stage])
        }
        listed.update(self._task.former_ids())
        present = {artefact_identity(item.item_id) for item in self._task.items}
        left = {item_id for item_id in listed if artefact_identity(item_id) not in present}
        if left:
            left -= ids_owned_by_other_batches(store, lane, batch, left)
        keys = {artefact_key(item_id) for item_id in left}
        keys.update(key for key in ownership.released_keys if artefact_identity(key) not in present)
        if not keys:
            return
        for stage in self._task.requested:
            former = {artefact_key(item_id): row for item_id, row in self._earlier[stage].items()}
            for key in sorted(keys):
                self._task.remove(key, stage, former.get(key))

    def plan(self) -> list[Job[Source, Name]]:
        """Items and their stages that are not done; takes over the rows of the others."""
        jobs = []
        for item in self._task.items:
            to_do: list[Name] = []
            for stage in self._task.requested:
                if item.quarantine_reason is not None:
                    row = self._quarantine_row(item, stage, item.quarantine_reason, item.quarantine_detail)
                    if self._earlier[stage].get(item.item_id) != row:
                        self._remove_unless_transient(item, stage, item.quarantine_reason)
                    self._rows[stage][item.item_id] = row
                    continue
                done = self._valid_row(item, stage)
                if done is None or self._task.must_remake(item, stage, to_do, self._known_rows(item)):
                    to_do.append(stage)
                    continue
                self._rows[stage][item.item_id] = done
                if done.get("quarantine_reason") is None:
                    self._outcomes[stage].n_skipped += 1
            if to_do:
                jobs.append(Job(item, tuple(to_do)))
        return jobs

    def _known_rows(self, item: BatchItem[Source]) -> dict[Name, Row]:
        """The item's rows: of this run or, for stages that it has not finished, of earlier ones."""
        rows: dict[Name, Row] = {}
        for stage, earlier in self._earlier.items():
            row = self._rows.get(stage, {}).get(item.item_id) or earlier.get(item.item_id)
            if row is not None:
                rows[stage] = row
        return rows

    def _fingerprint(self, item: BatchItem[Source], stage: Name) -> str:
        return self._task.fingerprint(item, stage, self._known_rows(item))

    def _valid_row(self, item: BatchItem[Source], stage: Name, *, transient: bool = False) -> Row | None:
        """The item's earlier row if its inputs are the present ones and its files are as recorded.

        Rows quarantined for a reason that may be gone by itself are valid only with ``transient``.
        """
        row = self._earlier[stage].get(item.item_id)
        if (
            row is None
            or row.get("content_hash", item.content_hash) != item.content_hash
            or row["fingerprint"] != self._fingerprint(item, stage)
        ):
            return None
        reason = row.get("quarantine_reason")
        if reason is None:
            return self._files.checked_row(item, stage, row)
        return row if transient or reason not in TRANSIENT_REASONS else None

    # Computing --------------------------------------------------------------------------------------------

    def open_journals(self, stack: ExitStack) -> None:
        for stage in self._task.requested:
            journal = self._task.stages[stage].journal
            if journal is not None:
                self._journals[stage] = stack.enter_context(StageJournal(journal))
                self._touched[stage] = True

    def execute(
        self, jobs: Sequence[Job[Source, Name]], workers: int, progress: Callable[[int, int], None] | None
    ) -> None:
        run_jobs(jobs, self._task.prepare, self._process, workers=workers, progress=progress)

    def _process(self, job: Job[Source, Name], prepared: Any) -> None:
        item = job.item
        finished = {
            stage: row
            for stage in self._task.stages
            if stage not in job.stages and (row := self._valid_row(item, stage, transient=True)) is not None
        }
        try:
            work = self._task.start(item, finished, prepared)
        except Exception as error:
            self._fail(item, job.stages, error)
            return
        for position, stage in enumerate(job.stages):
            begun, written = time.perf_counter(), work.bytes_written
            try:
                self._invalidate(item, stage)
                self._check_usable(stage, finished)
                row = self._common_columns(item, stage) | work.run(stage)
                former = self._earlier[stage].get(item.item_id)
                row = self._files.stamped_row(item, stage, row, work.take_stamps(), former)
            except QuarantineError as error:
                for later in job.stages[position:]:
                    self._invalidate(item, later)
                    self._quarantine(item, later, error)
                return
            except DamagedStageError as error:
                self._repair(job, job.stages[position:], error)
                return
            except Exception as error:
                self._fail(item, job.stages[position:], error)
                return
            finally:
                with self._outcome_lock:
                    self._outcomes[stage].duration_s += time.perf_counter() - begun
                    self._outcomes[stage].bytes_written += work.bytes_written - written
            self._finish(item, stage, row)
            with self._outcome_lock:
                self._outcomes[stage].n_done += 1
                if (damage := self._files.damage(item, stage)) is not None:
                    self._outcomes[stage].repaired[item.item_id] = damage

    def _repair(self, job: Job[Source, Name], to_do: Sequence[Name], error: DamagedStageError) -> None:
        """Plans the rest of a job again, together with the stage whose file is damaged.

        A stage that is not requested, or was made by this very job, is left alone: the item fails, and the file is
        noted for that stage's next run.
        """
        item = job.item
        stage = next(stage for stage in self._task.stages if stage == error.stage)
        if stage in self._task.requested and stage not in job.stages:
            with self._outcome_lock:
                del self._rows[stage][item.item_id]
                self._outcomes[stage].n_skipped -= 1
                self._files.note_damage(item, stage, error)
                self._repairs.append(Job(item, tuple(name for name in self._task.stages if name in {stage, *to_do})))
            return
        note_suspects(self._task.stages[stage].index, [self._files.name_of(error.path)])
        self._fail(item, to_do, error)

    def take_repairs(self) -> list[Job[Source, Name]]:
        """Jobs that were found to need an earlier stage again."""
        repairs, self._repairs = self._repairs, []
        return repairs

    def _check_usable(self, stage: Name, finished: Mapping[Name, Row]) -> None:
        """Quarantines the item where an earlier run did so in a stage before."""
        for before in self._task.stages:
            if before == stage:
                return
            row = finished.get(before, {})
            if (reason := row.get("quarantine_reason")) is not None:
                raise QuarantineError(reason, row["quarantine_detail"] or "")

    def _invalidate(self, item: BatchItem[Source], stage: Name) -> None:
        """Records that the stage's earlier result is not valid any more, before its files are overwritten."""
        former = self._earlier[stage].get(item.item_id)
        self._task.discard_former(item, stage, former, self._fingerprint(item, stage))
        if former is not None and stage in self._journals:
            self._journals[stage].begin(item.item_id)
        self._files.remove_damaged(item, stage)

    def _fail(self, item: BatchItem[Source], stages: Sequence[Name], error: Exception) -> None:
        with self._outcome_lock:
            self.failures.append((item.item_id, error))
            for stage in stages:
                self._outcomes[stage].n_failed += 1

    def _finish(self, item: BatchItem[Source], stage: Name, row: Row) -> None:
        if stage in self._journals:
            self._journals[stage].finish(item.item_id, row)
        with self._outcome_lock:
            self._rows[stage][item.item_id] = row

    def _quarantine(self, item: BatchItem[Source], stage: Name, error: QuarantineError) -> None:
        row = self._quarantine_row(item, stage, error.reason, error.detail)
        self._remove_unless_transient(item, stage, error.reason)
        self._finish(item, stage, row)

    def _remove_unless_transient(self, item: BatchItem[Source], stage: Name, reason: str) -> None:
        """Removes the artefacts of the item's earlier content, unless the reason may be gone by itself."""
        if reason not in TRANSIENT_REASONS:
            self._task.remove(item.key, stage, self._earlier[stage].get(item.item_id))

    def _quarantine_row(self, item: BatchItem[Source], stage: Name, reason: str, detail: str | None) -> Row:
        records = self._task.stages[stage]
        if "quarantine_reason" not in records.schema:
            raise TypeError(f"{self._task.title}: {stage} cannot list {item.item_id} as {reason}: no such column")
        columns = self._common_columns(item, stage) | {"quarantine_reason": reason, "quarantine_detail": detail}
        return records.complete_row(columns) | {FILES: None}

    def _common_columns(self, item: BatchItem[Source], stage: Name) -> Row:
        return self._task.stages[stage].common_columns(item, self._fingerprint(item, stage))

    # Records ----------------------------------------------------------------------------------------------

    def write_indexes(self) -> None:
        """Writes the indexes that changed and removes their journals and the notes of damaged files."""
        for stage in self._task.requested:
            records, rows = self._task.stages[stage], self._rows[stage]
            finding = self._outcomes[stage].index_finding
            if self._touched[stage] or finding is not None or not records.is_written(rows, self._indexed[stage]):
                records.write_index(rows.values())
            forget_suspects(records.index)

    def outcome(self, duration_s: float) -> BatchOutcome[Name]:
        for stage, outcome in self._outcomes.items():
            rows = self._rows[stage].values()
            reasons = Counter(reason for row in rows if (reason := row.get("quarantine_reason")) is not None)
            outcome.n_quarantined = dict(sorted(reasons.items()))
            usable = [row for row in rows if row.get("quarantine_reason") is None]
            self._task.summarize(stage, usable, outcome)
        return BatchOutcome(self._outcomes, duration_s)
