"""Replaces a finished run in its folder by a new one, once the new one is finished.

Until then the finished run stays usable.

A first training writes into its folder. One that would replace a finished run writes below ``retraining/`` and takes
its place when it is finished; the former run is moved below ``replaced/``, so that no files of two runs mix. Every step
is one rename, so that a process killed at any of them leaves a usable run and a later one completes the change. A
folder per run and a pointer would be simpler, but users and earlier scripts read ``runs/<lane>/checkpoints`` itself.
Callers hold the folder's lock.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uveitis_assets.storage.files import move, remove_half_files
from uveitis_assets.training.run_folder import (
    OWN_FILES,
    RunFolder,
    begin_run,
    ended_with,
    has_best_weights,
    is_finished,
    is_unfinished,
    run_identity,
)


def current_run(folder: RunFolder) -> RunFolder:
    """The run whose files are to be used: the folder's, or a finished one that is not promoted yet.

    The caller checks whether that run is itself unfinished, or has no weights.
    """
    return folder.pending if is_finished(folder.pending) and has_best_weights(folder.pending) else folder


def open_run_folder(folder: RunFolder, identity: Mapping[str, Any]) -> tuple[RunFolder, str | None]:
    """Choose the place where a run of ``identity`` is trained, and make it that run's.

    That is the folder itself, or its ``retraining/`` while the folder holds a usable run, and when a run of
    ``identity`` goes on there (the one in the folder has lost its weights since). What the place holds of a run that
    cannot be continued (another identity; finished, but its best weights are gone, damaged or others) is moved below
    ``replaced/``. Half-files of killed processes are removed.

    Returns:
        The place, and a message when there was another run.
    """
    usable = not is_unfinished(folder) and has_best_weights(folder)
    goes_on = is_unfinished(folder.pending) and run_identity(folder.pending) == identity
    place = folder.pending if usable or goes_on else folder
    remove_half_files(place.path)
    remove_half_files(place.last_state.parent)
    messages = []
    if usable:
        messages.append(
            f"{folder.path}: holds a finished run {_difference(folder, identity)}; it stays in use until this training "
            f"is finished, which writes below {place.path.name}/ and then takes its place"
        )
    if run_identity(place) != identity or is_finished(place):
        difference = _difference(place, identity)
        target = _set_aside(place, folder.replaced_folder)
        if target is not None:
            messages.append(
                f"{place.path}: held a run {difference}; it was moved to {target.relative_to(folder.path)} and the "
                "training begins anew"
            )
        begin_run(place, identity)
    else:
        # A killed move had begun to take this run away; what it took is not to mix with a later run.
        _number(_gathered(place, folder.replaced_folder))
    return place, "\n".join(messages) or None


def promote_pending_run(folder: RunFolder) -> str | None:
    """Move a finished run from ``retraining/`` to the place of the one in the folder.

    Returns:
        A message when a former run was moved, else None, also when there is nothing to complete.
    """
    pending = folder.pending
    whole = current_run(folder) == pending
    # The checkpoints move in first and run.json last: this one was killed in between.
    half_moved = (
        is_finished(pending)
        and not pending.last_state.parent.exists()
        and not folder.run_file.exists()
        # Else the weights here were put by hand, and the pending was being moved away.
        and ended_with(pending, folder.best_weights)
    )
    if not whole and not half_moved:
        return None
    target = _set_aside(folder, folder.replaced_folder) if whole else None
    for name in ("checkpoints", *OWN_FILES):
        if (pending.path / name).exists():
            if (folder.path / name).is_dir():
                # An evaluation wrote it after the checkpoints had moved in: it is of the same weights.
                shutil.rmtree(folder.path / name)
            move(pending.path / name, folder.path / name)
    shutil.rmtree(pending.path)
    return None if target is None else f"{folder.path}: the former run was moved to {target.relative_to(folder.path)}"


def _set_aside(run: RunFolder, replaced: Path) -> Path | None:
    """Move a run's files to a folder of their own below ``replaced``; None when there are none.

    They gather in a hidden folder, which gets its number when it is whole: a killed move goes on there, and what has a
    number is never added to. run.json moves last.
    """
    held = [name for name in OWN_FILES if (run.path / name).exists()]
    gathered = _gathered(run, replaced)
    if not held:
        return _number(gathered)
    if any((gathered / name).exists() for name in ("run.json", *held)):
        # Of another run: this place was filled again before that move was completed.
        _number(gathered)
    gathered.mkdir(parents=True, exist_ok=True)
    for name in held:
        move(run.path / name, gathered / name)
    return _number(gathered)


def _gathered(run: RunFolder, replaced: Path) -> Path:
    """Where the files of a run gather that is being moved below ``replaced``."""
    return replaced / f".{run.path.name}"


def _number(gathered: Path) -> Path | None:
    """Give gathered files the first free ``run_<n>``; None when there are none."""
    if not gathered.exists():
        return None
    number = 1
    while (target := gathered.with_name(f"run_{number:03d}")).exists():
        number += 1
    move(gathered, target)
    return target


def _difference(run: RunFolder, identity: Mapping[str, Any]) -> str:
    found = run_identity(run) or {}
    different = sorted(key for key in identity if found.get(key) != identity[key])
    return f"with another {', '.join(different)}" if different else "that has lost the best weights it ended with"
