"""Journal of one stage of a running batch: rows of finished items, for resuming after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from uveitis_assets.stages.index import Row
from uveitis_assets.storage.append_only import AppendOnlyFile


def read_stage_journal(path: Path) -> dict[str, Row | None]:
    """Latest row of each image in a journal; None where the image's artefacts were begun but not finished.

    Lines that a killed process left unfinished are ignored.
    """
    if not path.exists():
        return {}
    rows: dict[str, Row | None] = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            rows[entry["image_id"]] = entry["row"]
        except (ValueError, TypeError, KeyError):
            continue
    return rows


class StageJournal:
    """Append-only journal of one stage of one running batch.

    Raises:
        OSError: a line did not fit on the disk.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendOnlyFile(path)

    def begin(self, image_id: str) -> None:
        """Records that the image's artefacts are about to be overwritten: no earlier row is valid any more."""
        self._append(image_id, None)

    def finish(self, image_id: str, row: Mapping[str, Any]) -> None:
        """Records that all of the image's artefacts are in their places."""
        self._append(image_id, row)

    def _append(self, image_id: str, row: Mapping[str, Any] | None) -> None:
        self._file.append(json.dumps({"image_id": image_id, "row": row}, allow_nan=False).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, traceback)
