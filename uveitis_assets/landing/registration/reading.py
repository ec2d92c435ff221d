"""Reads samples that are new, may have changed, or could not be read before: each file once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.content_hash import content_hash, sample_content_hash
from uveitis_assets.landing.file_stamps import file_stamp, is_stamp_of, stamp_of, stamp_text
from uveitis_assets.landing.landed_files import read_landed_file_and_stat
from uveitis_assets.landing.layouts import Layout, find_layout
from uveitis_assets.landing.ledger import LedgerEntry
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import LandedSample, SampleFacts
from uveitis_assets.storage.store import ArtefactStore

# The file could not be read, so that its content is unknown: tried again at every registration.
_UNREAD_REASONS = frozenset({"missing", "broken_symlink", "escapes_root", "unreadable"})
READ_THREADS = 8


@dataclass(frozen=True, slots=True)
class SampleContent:
    """The ledger's columns of what a sample's files hold.

    The hash is empty where a file cannot be read. Size is that of all files, times are those of the file changed last.
    ``files`` and ``file_stamps`` are empty for samples of one file.
    """

    content_hash: str
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    width: int | None = 0
    height: int | None = 0
    quarantine_reason: str | None = None
    quarantine_detail: str | None = None
    files: tuple[str, ...] = ()
    file_stamps: tuple[str, ...] = ()

    def columns(self) -> dict[str, Any]:
        """Values by the name of their ledger column."""
        return {name: getattr(self, name) for name in _COLUMNS}


_COLUMNS = tuple(field.name for field in fields(SampleContent))


def read_changed_samples(
    store: ArtefactStore,
    dataset: DatasetConfiguration,
    samples: Mapping[str, LandedSample],
    live: Mapping[str, LedgerEntry],
    *,
    deadline: float,
    files_per_time_check: int,
) -> tuple[dict[str, SampleContent], int]:
    """Read what is new, has another size or other times than registered, or could not be read before.

    Args:
        store: its raw root is the boundary that symlinks must not leave.
        dataset: the landing folder and its layout.
        samples: what the layout describes now, by path.
        live: registered samples by path.
        deadline: `time.monotonic` after which reading ends; the first files are read in any case.
        files_per_time_check: files read between two looks at the clock.

    Returns:
        Contents by path, and the number of samples that were not read for lack of time.
    """
    folder = str(store.raw / dataset.folder)
    layout = find_layout(dataset.layout)
    hides_names = dataset.image_folder.identify_by_content
    to_read = [
        sample
        for path, sample in samples.items()
        if (entry := live.get(path)) is None or not _is_unchanged(entry, sample, folder)
    ]

    def read(sample: LandedSample) -> SampleContent:
        return _read_sample(store.raw, folder, sample, layout, hides_names=hides_names)

    contents: dict[str, SampleContent] = {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for chunk in _chunks(to_read, files_per_time_check):
            if contents and time.monotonic() > deadline:
                break
            contents.update(zip((sample.relative_path for sample in chunk), pool.map(read, chunk), strict=True))
    return contents, len(to_read) - len(contents)


def _is_unchanged(entry: LedgerEntry, sample: LandedSample, folder: str) -> bool:
    if entry.quarantine_reason in _UNREAD_REASONS or entry.files != sample.files:
        return False
    if not entry.files:
        return file_stamp(f"{folder}/{entry.relative_path}") == (entry.size, entry.mtime_ns, entry.ctime_ns)
    # A file that is too large has a reason that stays, but was not read.
    return len(entry.file_stamps) == len(entry.files) and all(
        is_stamp_of(stamp, file_stamp(f"{folder}/{file}"))
        for file, stamp in zip(entry.files, entry.file_stamps, strict=True)
    )


def _chunks(samples: Sequence[LandedSample], n_files: int) -> Iterator[list[LandedSample]]:
    """Samples of together at least so many files, the last chunk of the rest."""
    chunk: list[LandedSample] = []
    n_in_chunk = 0
    for sample in samples:
        chunk.append(sample)
        n_in_chunk += len(sample.files) or 1
        if n_in_chunk >= n_files:
            yield chunk
            chunk, n_in_chunk = [], 0
    if chunk:
        yield chunk


def _read_sample(raw: Path, folder: str, sample: LandedSample, layout: Layout, *, hides_names: bool) -> SampleContent:
    states: list[os.stat_result] = []
    hashes: list[str] = []
    facts: list[SampleFacts] = []
    problem: QuarantineError | None = None
    for file in sample.members:
        name = file if not hides_names else "image" + PurePosixPath(file).suffix
        try:
            data, state = read_landed_file_and_stat(raw, f"{folder}/{file}", name)
        except QuarantineError as error:
            return SampleContent("", quarantine_reason=error.reason, quarantine_detail=error.detail, files=sample.files)
        states.append(state)
        hashes.append(content_hash(data))
        try:
            facts.append(layout.probe(data, name))
        except QuarantineError as error:
            problem = problem or error
    found = SampleFacts(0, 0)
    if problem is None:
        try:
            found = layout.combine(facts)
        except QuarantineError as error:
            problem = error
    return SampleContent(
        sample_content_hash(hashes, sample.roles) if sample.files else hashes[0],
        size=sum(state.st_size for state in states),
        mtime_ns=max(state.st_mtime_ns for state in states),
        ctime_ns=max(state.st_ctime_ns for state in states),
        width=found.width,
        height=found.height,
        quarantine_reason=problem.reason if problem else None,
        quarantine_detail=problem.detail if problem else None,
        files=sample.files,
        file_stamps=tuple(map(stamp_text, map(stamp_of, states), hashes)) if sample.files else (),
    )
