"""Finds new samples, and registered ones that were replaced, renamed, returned, incomplete or gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.file_stamps import stamped_hash
from uveitis_assets.landing.ledger import LedgerEntry
from uveitis_assets.landing.registration.ledger_update import Finding, LedgerUpdate
from uveitis_assets.landing.registration.reading import SampleContent
from uveitis_assets.landing.samples import LandedSample, LandingProblem

_Content = tuple[str, str]  # dataset tag and content hash


def match_known_paths(
    update: LedgerUpdate,
    dataset: DatasetConfiguration,
    samples: Mapping[str, LandedSample],
    live: Mapping[str, int],
    contents: Mapping[str, SampleContent],
) -> tuple[list[int], list[LedgerEntry]]:
    """Compare registered paths with what their files hold now.

    Returns:
        Entries that are still live, by position, and new entries for replaced content.
    """
    described: list[int] = []
    pending: list[LedgerEntry] = []
    for path, index in live.items():
        if path not in samples:
            continue
        content = contents.get(path)
        if content is not None:
            replacement = _compare(update, index, samples[path], content, dataset)
            if replacement is not None:
                pending.append(replacement)
                continue
        described.append(index)
    return described, pending


def _compare(
    update: LedgerUpdate, index: int, sample: LandedSample, content: SampleContent, dataset: DatasetConfiguration
) -> LedgerEntry | None:
    """Bring an entry up to what was read; returns its successor if the content was replaced."""
    entry = update.entries[index]
    hides_names = dataset.image_folder.identify_by_content
    lost = _lost_file(entry, sample, content)
    if not content.content_hash or lost is not None:
        # It cannot be read now, or not as a whole: what is known about it stays, the reason is new.
        reason, detail = content.quarantine_reason, content.quarantine_detail
        if lost is not None:
            reason, detail = "missing", _lost_file_detail(entry, lost)
        if (entry.quarantine_reason, entry.quarantine_detail) != (reason, detail):
            update.touched.add(entry.batch)
        update.replace(index, quarantine_reason=reason, quarantine_detail=detail)
        return None
    if content.content_hash == entry.content_hash:
        if content.quarantine_reason != entry.quarantine_reason or content.files != entry.files:
            update.touched.add(entry.batch)
        update.replace(index, **content.columns())
        return None
    update.touched.add(entry.batch)
    if not entry.content_hash and not hides_names:
        update.found["changed"].append(entry.image_id)
        update.replace(index, **content.columns())
        return None
    update.replace(index, state="superseded")
    image_id = "" if hides_names else entry.image_id
    if image_id:
        update.found["changed"].append(image_id)
    return _new_entry(sample, content, image_id, patient=patient_of(entry, sample, dataset.patient_rule))


def _lost_file(entry: LedgerEntry, sample: LandedSample, content: SampleContent) -> str | None:
    """The first registered file that is not there, where nothing else about the sample changed.

    A sample is incomplete rather than another one as long as all its present files are registered ones: a disk that is
    not mounted or a copy under way replaces nothing.
    """
    if not entry.files or not content.content_hash:
        return None
    # One file alone may be left of several.
    present_hashes = Counter(map(stamped_hash, content.file_stamps) if content.files else [content.content_hash])
    if not present_hashes < Counter(map(stamped_hash, entry.file_stamps)):
        return None
    present = set(sample.members)
    # There are fewer files than were registered: at least one name is not there.
    return next(file for file in entry.files if file not in present)


def _lost_file_detail(entry: LedgerEntry, file: str) -> str:
    return (
        f"{file}: registered as one of {len(entry.files)} files of {entry.relative_path}, not there now; restore it. "
        f"If the sample is meant to be without it, land the other files under another name than {entry.relative_path}"
    )


def match_new_paths(
    update: LedgerUpdate,
    dataset: DatasetConfiguration,
    samples: Mapping[str, LandedSample],
    live: Mapping[str, int],
    contents: Mapping[str, SampleContent],
) -> tuple[list[int], list[LedgerEntry]]:
    """Recognise renamed and returned samples among the new paths, and mark what is gone.

    Returns:
        Entries that were found again, by position, and new entries for the other paths.
    """
    vanished = _by_content(
        update,
        (
            index
            for path, index in live.items()
            if path not in samples and not _is_out_of_sight(path, dataset.folder, update)
        ),
    )
    gone = _by_content(update, (index for index, entry in enumerate(update.entries) if entry.state == "gone"))
    candidates: tuple[tuple[Finding, dict[_Content, list[int]]], ...] = (("renamed", vanished), ("returned", gone))
    placed: list[int] = []
    pending: list[LedgerEntry] = []
    for path in sorted(path for path in contents if path not in live):
        sample, content = samples[path], contents[path]
        for finding, by_content in candidates:
            same_content = by_content.get((sample.dataset, content.content_hash), [])
            index = _best_match(update.entries, same_content, path, needs_same_path=not content.content_hash)
            if index is not None:
                same_content.remove(index)
                entry = update.replace(index, relative_path=path, state="live", **content.columns())
                update.touched.add(entry.batch)
                update.found[finding].append(entry.image_id)
                placed.append(index)
                break
        else:
            pending.append(_new_entry(sample, content, "", patient=sample.patient))
    for index in sorted(index for indices in vanished.values() for index in indices):
        entry = update.replace(index, state="gone", duplicate_of=None)
        update.touched.add(entry.batch)
        update.found["gone"].append(entry.image_id)
    return placed, pending


def _by_content(update: LedgerUpdate, indices: Iterable[int]) -> dict[_Content, list[int]]:
    groups: dict[_Content, list[int]] = {}
    for index in indices:
        entry = update.entries[index]
        groups.setdefault((entry.dataset, entry.content_hash), []).append(index)
    return groups


def _is_out_of_sight(path: str, folder: str, update: LedgerUpdate) -> bool:
    """Say whether a file cannot be seen rather than gone: a disk that is not mounted takes no image away."""
    return any(_hides(problem, path, folder) for problem in update.problems)


def _hides(problem: LandingProblem, path: str, folder: str) -> bool:
    if problem.reason == "no_images":
        return True
    if problem.path in (".", folder) and problem.reason in ("missing_folder", "unreadable", "escapes_root"):
        return True
    return problem.reason == "unreadable" and problem.path.endswith("/") and f"{path}/".startswith(problem.path)


def _best_match(
    entries: Sequence[LedgerEntry], candidates: Sequence[int], path: str, *, needs_same_path: bool
) -> int | None:
    """The candidate at the same path, else with the same file name, else the first one."""
    for index in candidates:
        if entries[index].relative_path == path:
            return index
    if needs_same_path:
        return None
    name = PurePosixPath(path).name
    for index in candidates:
        if PurePosixPath(entries[index].relative_path).name == name:
            return index
    return candidates[0] if candidates else None


def _new_entry(sample: LandedSample, content: SampleContent, image_id: str, *, patient: str) -> LedgerEntry:
    return LedgerEntry(
        image_id=image_id,
        relative_path=sample.relative_path,
        dataset=sample.dataset,
        patient=patient,
        eye=sample.eye,
        label_format=sample.label_format,
        label_paths=sample.label_paths,
        notes=sample.notes,
        official_split=sample.official_split,
        batch="",
        **content.columns(),
    )


def patient_of(entry: LedgerEntry, sample: LandedSample, rule: str) -> str:
    """Raw patient id of a registered sample.

    One read from the file's name stays when the file is renamed, and so does one found by the present rule when it
    finds none any more: the photograph is of the same person. A patient found by another rule is not kept.

    Args:
        entry: what is registered.
        sample: what the layout describes now.
        rule: the lane's `DatasetConfiguration.patient_rule`.
    """
    return entry.patient if sample.patient_from_name and entry.patient_rule in ("", rule) else sample.patient
