"""Put a backup back: the database in one transaction, then the ledger with the key."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from uveitis_assets.deployment.backup import DUMP, KEY, LEDGER, Backup
from uveitis_assets.deployment.postgres_tools import PostgresTools
from uveitis_assets.storage.files import move, write_bytes
from uveitis_assets.storage.store import ArtefactStore

_TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
_OTHER_SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend'"
)
# Not the schema itself: its owner differs between versions of Postgres, and dumps then hold it or not.
_DROP_EVERYTHING = """
DO $$ DECLARE found record; BEGIN
  FOR found IN SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' LOOP
    EXECUTE format('DROP TABLE public.%I CASCADE', found.name);
  END LOOP;
  FOR found IN SELECT sequencename AS name FROM pg_sequences WHERE schemaname = 'public' LOOP
    EXECUTE format('DROP SEQUENCE public.%I CASCADE', found.name);
  END LOOP;
  FOR found IN SELECT typname AS name FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype = 'e' LOOP
    EXECUTE format('DROP TYPE public.%I CASCADE', found.name);
  END LOOP;
END $$;
"""


class RestoreRefusedError(ValueError):
    """Restoring would overwrite something, or meet a deployment that is at work; nothing was changed."""


def restore(
    tools: PostgresTools,
    store: ArtefactStore,
    backup: Backup,
    *,
    overwrite: bool = False,
    owner: tuple[int, int] | None = None,
) -> Path | None:
    """Restore the database and the ledger; returns where an earlier ledger was moved to.

    Call it while no service and no run is at work. What the database held is gone afterwards; the earlier ledger stays
    under another name beside the restored one. Killed in between, it can be called again.

    Args:
        tools: of the database.
        store: of the artefacts.
        backup: a backup that was read, so that its bytes are those that were backed up.
        overwrite: whether a database with tables and a ledger with files may be replaced.
        owner: uid and gid of the restored files, for a caller that is root.

    Raises:
        RestoreRefusedError: sessions are open, or there is something to overwrite and ``overwrite`` is not set.
        PostgresToolError: the database could not be restored; it is as it was before, and so is the ledger.
        OSError: the ledger could not be written.
    """
    if int(tools.query(_OTHER_SESSIONS)) > 0:
        raise RestoreRefusedError(
            "the database has open sessions; stop what uses it first (docker/compose.sh stop daemon webserver "
            "code-server), and let runs end"
        )
    ledger, key = store.root / LEDGER, store.patient_key_file()
    n_tables = int(tools.query(_TABLES))
    present = ([f"{n_tables} tables in the database"] if n_tables else []) + [
        str(path) for path in (ledger, key) if (any(path.iterdir()) if path.is_dir() else path.exists())
    ]
    if present and not overwrite:
        raise RestoreRefusedError(
            f"found {', '.join(present)}; nothing was changed. Call it with --overwrite to replace them, or restore "
            "into a new deployment"
        )
    mark = f"{backup.folder.name}-{secrets.token_hex(3)}"
    staged = store.root / f".{LEDGER}-restoring-{mark}"
    try:
        _stage(backup, staged, owner)
        tools.restore(backup.folder / DUMP, _DROP_EVERYTHING)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    earlier = None
    if ledger.exists():
        earlier = store.root / f"{LEDGER}-before-{mark}"
        move(ledger, earlier)
    move(staged, ledger)
    if key != ledger / KEY and (ledger / KEY).exists():
        _place_key(ledger / KEY, key, owner)
    return earlier


def _stage(backup: Backup, staged: Path, owner: tuple[int, int] | None) -> None:
    """Write the backup's ledger to a folder beside the real one, so that one rename puts it in place."""
    staged.mkdir(mode=0o700, parents=True)
    for name in backup.ledger_files:
        write_bytes(staged / name, (backup.folder / LEDGER / name).read_bytes(), mode=0o600)
    if owner is not None:
        for path in (staged, *staged.rglob("*")):
            os.chown(path, *owner)


def _place_key(source: Path, key: Path, owner: tuple[int, int] | None) -> None:
    """Put the key where this machine's settings look for it."""
    write_bytes(key, source.read_bytes(), mode=0o600)
    if owner is not None:
        os.chown(key, *owner)
    source.unlink()
