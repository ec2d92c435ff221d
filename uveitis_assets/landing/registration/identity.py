"""Gives image ids and batches to new entries."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from unicodedata import category, normalize

from uveitis_assets.landing.ledger import LedgerEntry
from uveitis_assets.landing.pseudonyms import pseudonym
from uveitis_assets.landing.registration.ledger_update import LedgerUpdate
from uveitis_assets.storage.store import artefact_identity

_MAX_STEM_BYTES = 150
_PENDING = -1  # the id is taken by an entry that is not in the ledger yet


@dataclass(frozen=True, slots=True)
class ImageNaming:
    """By what images are named.

    ``hides_names``: file names name patients, ids come from the content. ``key``: secret key of the pseudonyms, empty
    where names are not hidden. ``identifiers``: names that the dataset itself gives, by path.
    """

    hides_names: bool
    key: bytes
    identifiers: Mapping[str, str]

    def stem(self, entry: LedgerEntry) -> str:
        """What follows the dataset tag in the image id."""
        path = PurePosixPath(entry.relative_path)
        if self.hides_names:
            if entry.content_hash:
                return "img_" + entry.content_hash[:16]
            return pseudonym(self.key, "path", entry.relative_path, prefix="unread_")
        # The name of a folder has no extension.
        is_file = not entry.files or entry.relative_path in entry.files
        stem = self.identifiers.get(entry.relative_path) or (path.stem if is_file else path.name)
        stem = normalize("NFC", stem)
        stem = "".join("_" if category(character) == "Cc" else character for character in stem)
        if len(stem.encode()) > _MAX_STEM_BYTES:
            start = stem.encode()[: _MAX_STEM_BYTES - 10].decode(errors="ignore")
            stem = f"{start}~{self._path_digest(entry.relative_path)}"
        return stem

    def free_id(self, image_id: str, path: str, taken: Mapping[str, int]) -> str:
        """The id itself where no artefact has its name, else one with a digest of the path."""
        candidate = image_id
        for n_bytes in (4, 8, 16):
            if artefact_identity(candidate) not in taken:
                break
            candidate = f"{image_id}~{self._path_digest(path, n_bytes)}"
        return candidate

    def _path_digest(self, path: str, n_bytes: int = 4) -> str:
        # Keyed where names name patients, so that a guessed name cannot be confirmed.
        return hashlib.blake2b(path.encode(), digest_size=n_bytes, key=self.key).hexdigest()


def append_new_entries(
    update: LedgerUpdate, pending: Sequence[LedgerEntry], naming: ImageNaming, batch_size: int
) -> list[str]:
    """Give ids and batches to the new entries and append them, sorted by path; returns the new batches."""
    taken = _taken_ids(update, naming)
    for entry in pending:
        if entry.image_id:
            taken.setdefault(artefact_identity(entry.image_id), _PENDING)
    first = 1 + max((int(entry.batch[1:]) for entry in update.entries), default=0)
    batches: list[str] = []
    for position, entry in enumerate(sorted(pending, key=lambda entry: entry.relative_path)):
        image_id = entry.image_id
        if not image_id:
            image_id = naming.free_id(f"{entry.dataset}::{naming.stem(entry)}", entry.relative_path, taken)
            taken[artefact_identity(image_id)] = _PENDING
            update.found["new"].append(image_id)
        batch = f"b{first + position // batch_size:05d}"
        if batch not in batches[-1:]:
            batches.append(batch)
        update.entries.append(dataclasses.replace(entry, image_id=image_id, batch=batch))
    return batches


def _taken_ids(update: LedgerUpdate, naming: ImageNaming) -> dict[str, int]:
    """Live entries by their artefacts' name; a returned image whose id is taken now gets another one."""
    live = [index for index, entry in enumerate(update.entries) if entry.state == "live"]
    taken = {artefact_identity(update.entries[index].image_id): index for index in live}
    for index in live:
        entry = update.entries[index]
        if taken[artefact_identity(entry.image_id)] != index:
            image_id = naming.free_id(entry.image_id, entry.relative_path, taken)
            update.replace(index, image_id=image_id)
            taken[artefact_identity(image_id)] = index
    return taken
