"""Interface between the batch engine and a family of data: items, stages, computing one item.

A new family derives one ``BatchTask`` and one ``ItemWork`` and passes the task to ``batch_run.run_batch``. Abstract
methods have to be written; the others have defaults, most of which do nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import polars as pl

from uveitis_assets.stages.artefact_files import FILES, FILES_TYPE, DamagedArtefactError, FileStamp, file_stamp
from uveitis_assets.stages.batch_outcome import Name, StageOutcome
from uveitis_assets.stages.index import (
    DamagedIndexError,
    Row,
    has_equal_copy,
    index_copy,
    read_index_metadata,
    read_intact_index,
    rows_by_id,
    write_stage_index,
)
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

    def common_columns(self, item: BatchItem[Any], fingerprint: str) -> Row:
        """Columns that all families' rows of a usable item share, those that the schema has."""
        columns = {
            **item.columns,
            "image_id": item.item_id,
            "key": item.key,
            "content_hash": item.content_hash,
            "fingerprint": fingerprint,
            "quarantine_reason": None,
            "quarantine_detail": None,
        }
        return {name: value for name, value in columns.items() if name in self.schema}

    def indexed_rows(self) -> dict[str, Row]:
        """Rows of the index by item id; none where there is no index. Of a damaged index, those of its copy."""
        return self.read_index()[0]

    def read_index(self) -> tuple[dict[str, Row], str | None]:
        """Rows of the index by item id, and what was found where the index is damaged."""
        finding = None
        try:
            table = read_intact_index(self.index)
        except FileNotFoundError:
            return {}, None
        except DamagedIndexError as error:
            finding = str(error).rpartition("; ")[0]
            copy = index_copy(self.index)
            try:
                table = read_intact_index(copy)
            except (FileNotFoundError, DamagedIndexError):
                return {}, f"{finding}; there is no intact copy of it: only rows of its journal or artefacts are known"
            finding = f"{finding}; its rows were read from {copy}"
        return {item_id: self.complete_row(row) for item_id, row in rows_by_id(table).items()}, finding

    def write_index(self, rows: Iterable[Row]) -> None:
        """Writes the index, with the files of each row, and removes the journal.

        Raises:
            OSError: no disk space; the journal stays.
        """
        metadata = {name: value for name, value in self.metadata.items() if value is not None}
        write_stage_index(self.index, pl.Schema({**self.schema, FILES: FILES_TYPE}), rows, metadata=metadata)
        if self.journal is not None:
            self.journal.unlink(missing_ok=True)

    def is_written(self, rows: Mapping[str, Row], indexed: Mapping[str, Row]) -> bool:
        """Whether the index that was read is there as it would be written, with a copy."""
        return (
            rows == indexed
            and has_equal_copy(self.index)
            and all(read_index_metadata(self.index, name) == value for name, value in self.metadata.items())
        )


class DamagedStageError(DamagedArtefactError):
    """A file of an earlier stage that a later one reads is damaged; ``stage`` is the earlier stage's name."""

    def __init__(self, stage: str, error: DamagedArtefactError) -> None:
        super().__init__(error.path, error.finding)
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Job(Generic[Source, Name]):
    """An item and those of its stages that have to be computed, in their order."""

    item: BatchItem[Source]
    stages: tuple[Name, ...]


class ItemWork(ABC, Generic[Name]):
    """Computes the stages of one item, one after the other in one thread; keeps what later stages need."""

    bytes_written: int = 0
    _stamps: dict[Path, FileStamp] | None = None

    @abstractmethod
    def run(self, stage: Name) -> Row:
        """Computes and writes one stage; returns the stage's own columns of the item's index row.

        Raises:
            QuarantineError: the item cannot be used; it is listed with the reason in this stage and those after it.
            DamagedStageError: a file of an earlier stage is damaged; that stage is made again where it is requested.
            Exception: anything else is a failure of this item alone.
        """

    def write(self, path: Path, data: bytes) -> None:
        """Writes an artefact atomically; counts its bytes and keeps its checksum for the index."""
        write_bytes(path, data)
        self.bytes_written += len(data)
        if self._stamps is None:
            self._stamps = {}
        self._stamps[path] = file_stamp(data)

    def take_stamps(self) -> dict[Path, FileStamp]:
        """Sizes and checksums of the files written since the last call."""
        stamps, self._stamps = self._stamps or {}, None
        return stamps


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
        """Files that have to be there, as they were written, for a usable item's stage to be done."""

    def recorded_rows(self, stage: Name, indexed: Mapping[str, Row]) -> dict[str, Row]:
        """Rows that earlier runs finished, by item id: of the journal, else of the index (``indexed``)."""
        records = self.stages[stage]
        if records.journal is None:
            raise NotImplementedError(f"{self.title}: {stage} has no journal; read its rows from its artefacts")
        rows: dict[str, Row | None] = dict(indexed)
        rows |= read_stage_journal(records.journal)
        return {item_id: records.complete_row(row) for item_id, row in rows.items() if row is not None}

    def unwanted_files(self, item: BatchItem[Source], stage: Name, row: Row) -> Iterable[Path]:
        """Files that must not exist for a usable item's stage to be done."""
        return ()

    def suspects(self, stage: Name) -> frozenset[str]:
        """Names below the store's root of files that the task found damaged in ``recorded_rows``."""
        return frozenset()

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
