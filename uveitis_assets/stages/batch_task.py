"""Interface between the batch engine and a family of data: items, stages, computing one item.

A new family derives one ``BatchTask`` and one ``ItemWork`` and passes the task to ``batch_run.run_batch``. Abstract
methods have to be written; the others have defaults, most of which do nothing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import polars as pl

from uveitis_assets.stages.batch_outcome import Name, StageOutcome
from uveitis_assets.stages.index import Row, read_stage_index
from uveitis_assets.stages.journal import read_stage_journal
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import artefact_key

Source = TypeVar("Source")


@dataclass(frozen=True, slots=True)
class BatchItem(Generic[Source]):
    """One item of a batch: an image, a volume, a group of files.

    Attributes:
        item_id: names it in indexes (column ``image_id``) and, as ``key``, its artefacts.
        content_hash: digest of all its files; with another one, all its stages are made again.
        source: what the task computes it from.
        columns: stand in each of its index rows, where the schema has them.
        quarantine_reason: why it is not to be computed at all; None for a usable item.
        quarantine_detail: the same in a sentence.
    """

    item_id: str
    content_hash: str
    source: Source
    columns: Mapping[str, Any] = field(default_factory=dict)
    quarantine_reason: str | None = None
    quarantine_detail: str | None = None

    @property
    def key(self) -> str:
        """Stem of the names of its artefacts."""
        return artefact_key(self.item_id)


@dataclass(frozen=True, slots=True)
class StageRecords:
    """Index and journal of one stage of one batch.

    Attributes:
        schema: columns of the index: ``image_id`` and ``fingerprint``; ``key``, ``content_hash``,
            ``quarantine_reason`` and ``quarantine_detail`` are filled in where they are among them; then the task's.
        index: the Parquet file of all rows, written at the end of a run.
        journal: has the finished rows while a batch runs, and is removed once the index is written. None where every
            artefact contains its own fingerprint: ``BatchTask.recorded_rows`` then reads the artefacts.
        metadata: values in the index's file metadata; None for one that must not be there. An index with other values
            is written again.
    """

    schema: pl.Schema
    index: Path
    journal: Path | None
    metadata: Mapping[str, str | None] = field(default_factory=dict)

    def complete_row(self, columns: Mapping[str, Any]) -> Row:
        """The columns given, and None in the schema's others: what the index gives back."""
        return dict.fromkeys(self.schema) | dict(columns)

    def indexed_rows(self) -> dict[str, Row]:
        """Rows of the index by item id; none where there is no index.

        Raises:
            ValueError: the file is not an index; the message names it.
        """
        return {item_id: self.complete_row(row) for item_id, row in read_stage_index(self.index).items()}


@dataclass(frozen=True, slots=True)
class Job(Generic[Source, Name]):
    """An item and those of its stages that have to be computed, in their order."""

    item: BatchItem[Source]
    stages: tuple[Name, ...]


class ItemWork(ABC, Generic[Name]):
    """Computes the stages of one item, one after the other in one thread; keeps what later stages need."""

    bytes_written: int = 0

    @abstractmethod
    def run(self, stage: Name) -> Row:
        """Computes and writes one stage; returns the stage's own columns of the item's index row.

        Raises:
            QuarantineError: the item cannot be used; it is listed with the reason in this stage and those after it.
            Exception: anything else is a failure of this item alone.
        """

    def write(self, path: Path, data: bytes) -> None:
        """Writes an artefact atomically and counts its bytes."""
        write_bytes(path, data)
        self.bytes_written += len(data)


class BatchTask(ABC, Generic[Source, Name]):
    """One batch of one family: its items and stages, and how they are computed, checked and removed.

    ``title`` begins messages about the batch, e.g. ``uwf700/tiles[b00001]``. ``stages`` are all stages, in the order
    of computing: an item that is quarantined in one is quarantined in the next as well. ``requested`` are those to
    bring up to date. ``items_name`` is the items' name in messages.
    """

    items_name: ClassVar[str] = "images"

    def __init__(
        self,
        title: str,
        items: Sequence[BatchItem[Source]],
        stages: Mapping[Name, StageRecords],
        requested: Collection[Name],
    ) -> None:
        self.title = title
        self.items = sorted(items, key=lambda item: item.item_id)
        self.stages = stages
        self.requested = tuple(stage for stage in stages if stage in requested)

    # What is done -----------------------------------------------------------------------------------------

    @abstractmethod
    def fingerprint(self, item: BatchItem[Source], stage: Name, rows: Mapping[Name, Row]) -> str:
        """Digest of all that the stage's result depends on besides the item's content.

        ``rows`` are the item's present rows, or the earlier ones of stages that are not finished yet.
        """

    @abstractmethod
    def required_files(self, item: BatchItem[Source], stage: Name, row: Row) -> Iterable[Path]:
        """Files that have to exist for a usable item's stage to be done."""

    def recorded_rows(self, stage: Name, indexed: Mapping[str, Row]) -> dict[str, Row]:
        """Rows that earlier runs finished, by item id: of the journal, else of the index (``indexed``)."""
        records = self.stages[stage]
        if records.journal is None:
            raise NotImplementedError(f"{self.title}: {stage} has no journal; read its rows from its artefacts")
        rows: dict[str, Row | None] = dict(indexed)
        rows |= read_stage_journal(records.journal)
        return {item_id: records.complete_row(row) for item_id, row in rows.items() if row is not None}

    def in_place(self, item: BatchItem[Source], stage: Name, row: Row) -> bool:
        """Whether the files of a finished stage are as they have to be."""
        files = self.required_files(item, stage, row)
        return all(os.path.exists(path) for path in files)  # noqa: PTH110 - half the time of Path.exists

    def must_remake(
        self, item: BatchItem[Source], stage: Name, to_do: Collection[Name], rows: Mapping[Name, Row]
    ) -> bool:
        """Whether a valid stage has to be made again, e.g. because one before it is (``to_do``)."""
        return False

    def former_ids(self) -> Iterable[str]:
        """Further ids that may have artefacts, besides those that the requested stages' records list."""
        return ()

    # Computing --------------------------------------------------------------------------------------------

    @abstractmethod
    def start(self, item: BatchItem[Source], rows: Mapping[Name, Row], prepared: Any) -> ItemWork[Name]:
        """Returns the work on an item; called in the thread that computes it.

        Args:
            item: the item.
            rows: of its stages that are done, also where they quarantined it.
            prepared: what ``prepare`` gave with it.
        """

    def prepare(
        self, jobs: Sequence[Job[Source, Name]], pool: Executor
    ) -> Iterator[tuple[Job[Source, Name], Any]] | None:
        """Yields every job once, in any order, with something computed beforehand, e.g. in batches on a GPU.

        Runs in the calling thread while the pool computes the jobs yielded before. None: there is nothing to prepare,
        and a single worker is the calling thread itself.
        """
        return None

    def running(self) -> AbstractContextManager[None]:
        """A context that is entered while items are planned and computed."""
        return nullcontext()

    # Removing ---------------------------------------------------------------------------------------------

    @abstractmethod
    def remove(self, key: str, stage: Name, former: Row | None) -> None:
        """Removes all files that a stage may have of one item; ``former`` is the last known row."""

    def discard_former(self, item: BatchItem[Source], stage: Name, former: Row | None, fingerprint: str) -> None:
        """Removes former files that must not be found beside new ones, not even after a kill.

        Args:
            item: the item.
            stage: about to be computed.
            former: the row of the last known result.
            fingerprint: of the present result; where the former row has the same, only missing files are made again.
        """

    def remove_partial_files(self) -> None:
        """Removes unfinished files among the items' artefacts; called where a killed run left a journal."""

    # Reporting --------------------------------------------------------------------------------------------

    def summarize(self, stage: Name, rows: Sequence[Row], outcome: StageOutcome) -> None:
        """Adds the family's own numbers of a stage to its outcome; ``rows`` are those of the usable items."""
