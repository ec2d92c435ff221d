"""Registration of a landing folder: compares it with the ledger and gives ids and batches to what is new."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from unicodedata import category, normalize

from uveitis_assets.landing.change_detection import file_stamp
from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.image_file import content_hash, read_header, read_landed_file_and_stat
from uveitis_assets.landing.layouts import scan_landing_folder
from uveitis_assets.landing.ledger import LedgerEntry, read_ledger, refuse_lost_ledger, write_ledger
from uveitis_assets.landing.pseudonyms import patient_key, pseudonym
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import SPLITS, LandedImage, LandingProblem, Split
from uveitis_assets.landing.splits import strictest
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore, artefact_identity

# The file could not be read, so that its content is unknown: tried again at every registration.
_UNREAD_REASONS = frozenset({"missing", "broken_symlink", "escapes_root", "unreadable"})


_READ_THREADS = 8


_READ_CHUNK = 256


_MAX_STEM_BYTES = 150


@dataclass(frozen=True, slots=True)
class RegistrationReport:
    """What one registration found; tuples hold image ids, and no raw patient id.

    ``changed``: other content under the same path, or content where there was none before. ``touched_batches``:
    existing batches whose manifest part no longer tells the truth. ``quarantined``: reason of every live image that
    is set aside. Of the lane as a whole, not only of what is new: ``n_images``, ``quarantined``, ``problems``.
    """

    n_images: int
    n_unchanged: int
    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    n_deferred: int = 0
    new_batches: tuple[str, ...] = ()
    touched_batches: tuple[str, ...] = ()
    quarantined: dict[str, str] = field(default_factory=dict)
    problems: tuple[LandingProblem, ...] = ()


@dataclass(frozen=True, slots=True)
class _Content:
    """A file's bytes as seen once: hash, stamps, header or reason."""

    content_hash: str
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    width: int = 0
    height: int = 0
    quarantine_reason: str | None = None
    quarantine_detail: str | None = None


def register(
    store: ArtefactStore, dataset: DatasetConfiguration, *, time_budget_s: float | None = None
) -> RegistrationReport:
    """Compare the landing folder with the ledger, read what is new or may have changed, and write the ledger.

    Idempotent, atomic and serialized between processes. New entries, sorted by path, fill new batches of at most
    ``dataset.batch_size``; existing batches keep their members. Every new file is opened once. After
    ``time_budget_s`` no further file is read: ``n_deferred`` of the report counts those left for the next call.

    Raises:
        LedgerError: the ledger is damaged, or gone although the lane has manifest parts.
    """
    with store.lock(f"{dataset.name}.register"):
        refuse_lost_ledger(store, dataset.name)
        registration = _Registration(store, dataset, read_ledger(store, dataset.name), time_budget_s)
        report = registration.run()
        write_ledger(store, dataset.name, registration.entries, registration.loaded)
        _write_problems(store, dataset.name, registration.problems)
        return report


class _Registration:
    """One registration at work: the entries, and what is noticed about them."""

    def __init__(
        self,
        store: ArtefactStore,
        dataset: DatasetConfiguration,
        loaded: list[LedgerEntry],
        time_budget_s: float | None = None,
    ) -> None:
        self.store = store
        self.deadline = math.inf if time_budget_s is None else time.monotonic() + time_budget_s
        self.n_deferred = 0
        self.dataset = dataset
        self.loaded = loaded
        self.entries = list(loaded)
        self.touched: set[str] = set()
        self.noticed: dict[str, list[str]] = {
            kind: [] for kind in ("new", "changed", "renamed", "relabelled", "gone", "returned", "duplicates")
        }
        self.problems: list[LandingProblem] = []
        self.by_content = dataset.image_folder.identify_by_content
        self.key = patient_key(store) if self.by_content else b""
        self.identifiers: dict[str, str] = {}

    def run(self) -> RegistrationReport:
        scan = scan_landing_folder(self.dataset, self.store)
        self.problems.extend(scan.problems)
        folder = str(self.store.raw / self.dataset.folder)
        images = {image.relative_path: image for image in scan.images}
        self.identifiers = {image.relative_path: image.identifier for image in scan.images if image.identifier}
        live = {entry.relative_path: index for index, entry in enumerate(self.entries) if entry.state == "live"}
        contents = self._read_changed(folder, images, live)

        pending: list[LedgerEntry] = []
        described: list[int] = []
        for path, index in live.items():
            if path in images:
                described.append(index)
                if path in contents:
                    self._settle(index, images[path], contents[path], pending)
        described.extend(self._place_new_paths(images, live, contents, pending))
        described = [index for index in described if self.entries[index].state == "live"]
        self._describe(folder, described, images, pending)
        new_batches = self._append(pending)
        self._mark_duplicates()
        self._settle_patients()
        return self._report(new_batches)

    # Files ------------------------------------------------------------------------------------------------

    def _read_changed(self, folder: str, images: dict[str, LandedImage], live: dict[str, int]) -> dict[str, _Content]:
        """Read every file that is new, may have changed, or could not be read the last time."""
        to_read = []
        for path in images:
            index = live.get(path)
            if index is not None and self.entries[index].quarantine_reason not in _UNREAD_REASONS:
                entry = self.entries[index]
                if file_stamp(f"{folder}/{path}") == (entry.size, entry.mtime_ns, entry.ctime_ns):
                    continue
            to_read.append(path)
        contents: dict[str, _Content] = {}
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for start in range(0, len(to_read), _READ_CHUNK):
                if start and time.monotonic() > self.deadline:
                    self.n_deferred = len(to_read) - start
                    break
                chunk = to_read[start : start + _READ_CHUNK]
                contents.update(zip(chunk, pool.map(self._read_content, chunk), strict=True))
        return contents

    def _read_content(self, path: str) -> _Content:
        name = path if not self.by_content else "image" + PurePosixPath(path).suffix
        try:
            data, state = read_landed_file_and_stat(
                self.store.raw, str(self.store.raw / self.dataset.folder / path), name
            )
        except QuarantineError as error:
            return _Content("", quarantine_reason=error.reason, quarantine_detail=error.detail)
        digest = content_hash(data)
        stamps = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        try:
            header = read_header(data, name)
        except QuarantineError as error:
            return _Content(digest, *stamps, quarantine_reason=error.reason, quarantine_detail=error.detail)
        return _Content(digest, *stamps, width=header.width, height=header.height)

    def _settle(self, index: int, image: LandedImage, content: _Content, pending: list[LedgerEntry]) -> None:
        """Decide about a known path whose file was read again."""
        entry = self.entries[index]
        if not content.content_hash:
            # It cannot be read now: what is known about it stays, the reason is new.
            if (entry.quarantine_reason, entry.quarantine_detail) != (
                content.quarantine_reason,
                content.quarantine_detail,
            ):
                self.touched.add(entry.batch)
            self.entries[index] = dataclasses.replace(
                entry, quarantine_reason=content.quarantine_reason, quarantine_detail=content.quarantine_detail
            )
        elif content.content_hash == entry.content_hash:
            if content.quarantine_reason != entry.quarantine_reason:
                self.touched.add(entry.batch)
            self.entries[index] = dataclasses.replace(entry, **dataclasses.asdict(content))
        elif not entry.content_hash and not self.by_content:
            self.touched.add(entry.batch)
            self.noticed["changed"].append(entry.image_id)
            self.entries[index] = dataclasses.replace(entry, **dataclasses.asdict(content))
        else:
            self.touched.add(entry.batch)
            self.entries[index] = dataclasses.replace(entry, state="superseded")
            image_id = "" if self.by_content else entry.image_id
            if image_id:
                self.noticed["changed"].append(image_id)
            pending.append(_new_entry(image, content, image_id, patient=_patient(entry, image)))

    def _place_new_paths(
        self,
        images: dict[str, LandedImage],
        live: dict[str, int],
        contents: dict[str, _Content],
        pending: list[LedgerEntry],
    ) -> list[int]:
        """Recognise renamed and returned files among the new paths; the others are new. Mark what is gone."""
        vanished: dict[tuple[str, str], list[int]] = {}
        for path, index in live.items():
            if path not in images and not self._is_out_of_sight(path):
                entry = self.entries[index]
                vanished.setdefault((entry.dataset, entry.content_hash), []).append(index)
        gone: dict[tuple[str, str], list[int]] = {}
        for index, entry in enumerate(self.entries):
            if entry.state == "gone":
                gone.setdefault((entry.dataset, entry.content_hash), []).append(index)
        placed: list[int] = []
        for path in sorted(path for path in contents if path not in live):
            image, content = images[path], contents[path]
            identity = (image.dataset, content.content_hash)
            for kind, candidates in (("renamed", vanished.get(identity, [])), ("returned", gone.get(identity, []))):
                found = self._best_match(candidates, path, needs_same_path=not content.content_hash)
                if found is not None:
                    candidates.remove(found)
                    entry = self.entries[found]
                    self.touched.add(entry.batch)
                    self.entries[found] = dataclasses.replace(
                        entry, relative_path=path, state="live", **dataclasses.asdict(content)
                    )
                    self.noticed[kind].append(entry.image_id)
                    placed.append(found)
                    break
            else:
                pending.append(_new_entry(image, content, "", patient=image.patient))
        for index in sorted(index for indices in vanished.values() for index in indices):
            entry = self.entries[index]
            self.touched.add(entry.batch)
            self.noticed["gone"].append(entry.image_id)
            self.entries[index] = dataclasses.replace(entry, state="gone", duplicate_of=None)
        return placed

    def _is_out_of_sight(self, path: str) -> bool:
        """Say whether a file's folder could not be listed, or the whole landing folder is empty: a disk that is not
        mounted takes no image away."""
        return any(
            problem.reason == "no_images"
            or (
                problem.path in (".", self.dataset.folder)
                and problem.reason in ("missing_folder", "unreadable", "escapes_root")
            )
            or (problem.reason == "unreadable" and problem.path.endswith("/") and path.startswith(problem.path))
            for problem in self.problems
        )

    def _best_match(self, candidates: list[int], path: str, *, needs_same_path: bool) -> int | None:
        """The candidate at the same path, else with the same file name, else the first one."""
        name = PurePosixPath(path).name
        for index in candidates:
            if self.entries[index].relative_path == path:
                return index
        if needs_same_path:
            return None
        for index in candidates:
            if PurePosixPath(self.entries[index].relative_path).name == name:
                return index
        return candidates[0] if candidates else None

    # Descriptions -----------------------------------------------------------------------------------------

    def _describe(
        self, folder: str, described: Sequence[int], images: dict[str, LandedImage], pending: list[LedgerEntry]
    ) -> None:
        """Bring labels, eye, patient, notes and official split of all entries up to what the layout says now."""
        known: dict[str, str] = {}
        for entry in self.entries:
            if entry.state == "live":
                known.update(zip(entry.label_paths, entry.label_stamps, strict=False))
        wanted = [*(images[self.entries[index].relative_path] for index in described)]
        wanted.extend(images[entry.relative_path] for entry in pending)
        stamps = self._label_stamps(folder, wanted, known)
        for index in described:
            entry = self.entries[index]
            image = images[entry.relative_path]
            updated = _described(entry, image, stamps)
            if updated.label_fingerprint != entry.label_fingerprint:
                self.noticed["relabelled"].append(entry.image_id)
                self.touched.add(entry.batch)
            elif updated.label_paths != entry.label_paths:
                self.touched.add(entry.batch)
            self.entries[index] = updated
        pending[:] = [_described(entry, images[entry.relative_path], stamps) for entry in pending]

    def _label_stamps(self, folder: str, images: Sequence[LandedImage], known: dict[str, str]) -> dict[str, str]:
        """``size:mtime:ctime:hash`` of every label file, reading only those whose size or times differ."""
        paths = sorted(
            {path for image in images if image.label_format in ("obb", "mask") for path in image.label_paths}
        )
        stamps: dict[str, str] = {}
        to_read = []
        for path in paths:
            state = file_stamp(f"{folder}/{path}")
            stored = known.get(path, "")
            if state is not None and stored.startswith(":".join(map(str, state)) + ":"):
                stamps[path] = stored
            else:
                to_read.append(path)

        def read(path: str) -> str | LandingProblem:
            try:
                data, state = read_landed_file_and_stat(self.store.raw, f"{folder}/{path}", path)
            except QuarantineError as error:
                return LandingProblem(path, error.reason, error.detail)
            return f"{state.st_size}:{state.st_mtime_ns}:{state.st_ctime_ns}:{content_hash(data)}"

        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for path, found in zip(to_read, pool.map(read, to_read), strict=True):
                if isinstance(found, LandingProblem):
                    self.problems.append(found)
                    stamps[path] = f":::{found.reason}"
                else:
                    stamps[path] = found
        return stamps

    # Identity ---------------------------------------------------------------------------------------------

    def _append(self, pending: list[LedgerEntry]) -> list[str]:
        """Give ids and batches to the new entries and append them, sorted by path."""
        taken = {
            artefact_identity(entry.image_id): index
            for index, entry in enumerate(self.entries)
            if entry.state == "live"
        }
        for index, entry in enumerate(self.entries):
            # A returned image whose id was given away meanwhile takes another one.
            if entry.state == "live" and taken[artefact_identity(entry.image_id)] != index:
                image_id = self._free_id(entry.image_id, entry.relative_path, taken)
                self.entries[index] = dataclasses.replace(entry, image_id=image_id)
                taken[artefact_identity(image_id)] = index
        for entry in pending:
            if entry.image_id:
                taken.setdefault(artefact_identity(entry.image_id), -1)
        first = 1 + max((int(entry.batch[1:]) for entry in self.entries), default=0)
        batches: list[str] = []
        for position, entry in enumerate(sorted(pending, key=lambda entry: entry.relative_path)):
            image_id = entry.image_id
            if not image_id:
                image_id = self._free_id(f"{entry.dataset}::{self._stem(entry)}", entry.relative_path, taken)
                taken[artefact_identity(image_id)] = -1
                self.noticed["new"].append(image_id)
            batch = f"b{first + position // self.dataset.batch_size:05d}"
            if batch not in batches[-1:]:
                batches.append(batch)
            self.entries.append(dataclasses.replace(entry, image_id=image_id, batch=batch))
        return batches

    def _stem(self, entry: LedgerEntry) -> str:
        if self.by_content:
            if entry.content_hash:
                return "img_" + entry.content_hash[:16]
            return pseudonym(self.key, "path", entry.relative_path, prefix="unread_")
        stem = self.identifiers.get(entry.relative_path) or PurePosixPath(entry.relative_path).stem
        stem = normalize("NFC", stem)
        stem = "".join("_" if category(character) == "Cc" else character for character in stem)
        if len(stem.encode()) > _MAX_STEM_BYTES:
            start = stem.encode()[: _MAX_STEM_BYTES - 10].decode(errors="ignore")
            stem = f"{start}~{self._path_digest(entry.relative_path)}"
        return stem

    def _free_id(self, image_id: str, path: str, taken: dict[str, int]) -> str:
        candidate = image_id
        for n_bytes in (4, 8, 16):
            if artefact_identity(candidate) not in taken:
                break
            candidate = f"{image_id}~{self._path_digest(path, n_bytes)}"
        return candidate

    def _path_digest(self, path: str, n_bytes: int = 4) -> str:
        # Keyed where names name patients, so that a guessed name cannot be confirmed.
        return hashlib.blake2b(path.encode(), digest_size=n_bytes, key=self.key).hexdigest()

    # Relations --------------------------------------------------------------------------------------------

    def _mark_duplicates(self) -> None:
        """Point every live entry at the first live one with the same content."""
        first: dict[str, int] = {}
        for index, entry in enumerate(self.entries):
            duplicate_of = None
            if entry.state == "live" and entry.content_hash and entry.quarantine_reason is None:
                original = first.setdefault(entry.content_hash, index)
                if original != index:
                    duplicate_of = self.entries[original].image_id
            if duplicate_of != entry.duplicate_of:
                self.entries[index] = dataclasses.replace(entry, duplicate_of=duplicate_of)
                if index < len(self.loaded):
                    self.touched.add(entry.batch)
            if duplicate_of and index >= len(self.loaded):
                self.noticed["duplicates"].append(entry.image_id)

    def _settle_patients(self) -> None:
        """Settle whose split every image follows; report patients that copies or official splits pull apart.

        What gone and superseded entries say about their patients stays true: a patient does not leave the test set
        because the photograph that put it there was removed.
        """
        first: dict[str, LedgerEntry] = {}
        for entry in self.entries:
            # Quarantined files are left out: empty files are not copies of each other.
            if entry.content_hash and entry.quarantine_reason is None:
                first.setdefault(entry.content_hash, entry)
        owners = [_patient_key(first.get(entry.content_hash, entry)) for entry in self.entries]
        claims: dict[tuple[str, str], set[Split]] = {}
        for entry, owner in zip(self.entries, owners, strict=True):
            if entry.official_split is not None:
                claims.setdefault(owner, set()).add(entry.official_split)
        conflicting = {patient for patient, splits in claims.items() if len(splits) > 1}
        for index, (entry, owner) in enumerate(zip(self.entries, owners, strict=True)):
            official = strictest(claims.get(owner, ()))
            if (entry.split_dataset, entry.split_patient, entry.patient_official_split) != (*owner, official):
                self.entries[index] = dataclasses.replace(
                    entry, split_dataset=owner[0], split_patient=owner[1], patient_official_split=official
                )
                if index < len(self.loaded) and entry.state == "live":
                    self.touched.add(entry.batch)
            if entry.state != "live":
                continue
            # A quarantined copy stands in no split; its reason is reported.
            if owner != _patient_key(entry) and entry.quarantine_reason is None:
                self._note(entry, "duplicate_of_other_patient", _other_patient(entry, first[entry.content_hash]))
            if owner in conflicting:
                conflicting.discard(owner)
                sides = ", ".join(split for split in SPLITS if split in claims[owner])
                detail = (
                    f"the patient of {entry.image_id} has the official splits {sides}; {official} holds; removed and "
                    "replaced images count"
                )
                self._note(entry, "conflicting_official_splits", detail)

    def _note(self, entry: LedgerEntry, reason: str, detail: str) -> None:
        path = entry.image_id if self.by_content else entry.relative_path
        self.problems.append(LandingProblem(path, reason, detail))

    def _report(self, new_batches: list[str]) -> RegistrationReport:
        live = [entry for entry in self.entries if entry.state == "live"]
        seen = {image_id for kind in self.noticed if kind != "gone" for image_id in self.noticed[kind]}
        problems = self.problems
        if self.by_content:
            own_files = {".", self.dataset.image_folder.csv, *(entry.image_id for entry in live)}
            problems = [
                problem
                if problem.path in own_files
                else dataclasses.replace(problem, path=pseudonym(self.key, "path", problem.path, prefix="file_"))
                for problem in problems
            ]
        return RegistrationReport(
            n_images=len(live),
            n_unchanged=sum(entry.image_id not in seen for entry in live),
            n_deferred=self.n_deferred,
            new_batches=tuple(new_batches),
            touched_batches=tuple(sorted(self.touched.difference(new_batches))),
            quarantined={entry.image_id: entry.quarantine_reason for entry in live if entry.quarantine_reason},
            problems=tuple(problems),
            **{kind: tuple(sorted(ids)) for kind, ids in self.noticed.items()},
        )


def _new_entry(image: LandedImage, content: _Content, image_id: str, *, patient: str) -> LedgerEntry:
    return LedgerEntry(
        image_id=image_id,
        relative_path=image.relative_path,
        dataset=image.dataset,
        patient=patient,
        eye=image.eye,
        label_format=image.label_format,
        label_paths=image.label_paths,
        notes=image.notes,
        official_split=image.official_split,
        batch="",
        **dataclasses.asdict(content),
    )


def _patient_key(entry: LedgerEntry) -> tuple[str, str]:
    return entry.dataset, entry.patient


def _other_patient(entry: LedgerEntry, first: LedgerEntry) -> str:
    """Why an image follows the split of another patient than its own, and what to do."""
    fate = {"live": "", "gone": ", removed since,", "superseded": ", replaced since by another photograph,"}[
        first.state
    ]
    return (
        f"{entry.image_id} has the same content as {first.image_id}{fate} of another patient and follows its split, "
        "other images of its own patient do not; mend the patient ids if the patient is the same, else remove the image"
    )


def _patient(entry: LedgerEntry, image: LandedImage) -> str:
    """A patient read from the file's name stays when the file is renamed."""
    return entry.patient if image.patient_from_name else image.patient


def _described(entry: LedgerEntry, image: LandedImage, label_stamps: dict[str, str]) -> LedgerEntry:
    patient = _patient(entry, image)
    stamps = tuple(label_stamps.get(path, "") for path in image.label_paths)
    said = (patient, image.eye, image.label_format, image.label_paths, image.notes, image.official_split, stamps)
    if entry.label_fingerprint and said == (
        entry.patient,
        entry.eye,
        entry.label_format,
        entry.label_paths,
        entry.notes,
        entry.official_split,
        entry.label_stamps,
    ):
        return entry
    hashes = [stamp.rpartition(":")[2] for stamp in stamps]
    description = [image.label_format, image.notes, image.eye, patient, image.official_split, *hashes]
    return dataclasses.replace(
        entry,
        patient=patient,
        eye=image.eye,
        label_format=image.label_format,
        label_paths=image.label_paths,
        notes=image.notes,
        official_split=image.official_split,
        label_fingerprint=hashlib.blake2b(json.dumps(description).encode(), digest_size=16).hexdigest(),
        label_stamps=stamps,
    )


def _write_problems(store: ArtefactStore, lane: str, problems: Sequence[LandingProblem]) -> None:
    lines = [dataclasses.asdict(problem) for problem in problems]
    data = (json.dumps({"problems": lines}, indent=2, ensure_ascii=False) + "\n").encode(errors="replace")
    path = store.landing_problems_file(lane)
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data, mode=0o600)
