"""The restore drill: runs, partitions, ledger and pseudonyms of a lost host are there again after a restore."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
import yaml

from uveitis_assets.deployment.backup import Backup, BackupError, back_up
from uveitis_assets.deployment.postgres_tools import PostgresToolError, PostgresTools
from uveitis_assets.deployment.restore import RestoreRefusedError, restore
from uveitis_assets.landing.pseudonyms import PatientKeyError, patient_key, pseudonym
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.deployment.postgres_server import Server, serve
from uveitis_assets_tests.landing.landing_samples import build, land, lane, rows

PATIENT = ("lane", "Anna 12.03.1955")


@dg.asset(partitions_def=dg.DynamicPartitionsDefinition(name="batches"))
def batch(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"n_images": len(context.partition_key)})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtefactStore:
    monkeypatch.delenv("UVEITIS_PATIENT_KEY_FILE", raising=False)
    return ArtefactStore(root=tmp_path / "data", raw=tmp_path / "raw")


@pytest.fixture
def server(postgres_programs: Path) -> Iterator[Server]:
    with serve(postgres_programs) as server:
        yield server


def _tools(server: Server) -> PostgresTools:
    return PostgresTools.of_this_machine(server.url.replace("+psycopg2", ""))


def _open(server: Server, home: Path) -> dg.DagsterInstance:
    home.mkdir(exist_ok=True)
    settings = {"telemetry": {"enabled": False}, "storage": {"postgres": {"postgres_url": server.url}}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return dg.DagsterInstance.from_config(str(home))


def _work(server: Server, home: Path, store: ArtefactStore, *keys: str) -> None:
    """Register images, and materialize batches."""
    for number in range(5):
        land(store, f"{number}.jpg")
    build(store, lane())
    with _open(server, home) as instance:
        instance.add_dynamic_partitions("batches", list(keys))
        for key in keys:
            assert dg.materialize([batch], partition_key=key, instance=instance).success


def _state(server: Server, home: Path) -> tuple[list[str], list[str], set[str]]:
    """Ids of runs, partitions and materialized partitions."""
    with _open(server, home) as instance:
        runs = sorted(run.run_id for run in instance.get_runs() if run.is_success)
        return runs, list(instance.get_dynamic_partitions("batches")), instance.get_materialized_partitions(batch.key)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_lost_host_is_restored_with_its_runs_ledger_and_pseudonyms(
    postgres_programs: Path, store: ArtefactStore, tmp_path: Path
) -> None:
    with serve(postgres_programs) as lost:
        _work(lost, tmp_path / "home", store, "b00001", "b00002")
        before = _state(lost, tmp_path / "home")
        backup = back_up(_tools(lost), store, tmp_path / "backups")
    ledger, manifest = _bytes(store.root / "ledger"), rows(store)
    name = pseudonym(patient_key(store), *PATIENT)
    shutil.rmtree(store.root / "ledger")
    with pytest.raises(PatientKeyError, match="restore it"):
        patient_key(store)

    with serve(postgres_programs) as new:
        moved = restore(_tools(new), store, Backup.read(backup.folder))
        assert moved is None
        assert _state(new, tmp_path / "home") == before
        assert len(before[0]) == 2
        assert _bytes(store.root / "ledger") == ledger
        assert pseudonym(patient_key(store), *PATIENT) == name
        build(store, lane())
        assert rows(store) == manifest
        # Sequences go on where they were: a further run gets an id of its own.
        _work(new, tmp_path / "home", store, "b00003")
        runs, partitions, made = _state(new, tmp_path / "home")
        assert set(before[0]) < set(runs)
        assert (len(runs), set(partitions), made) == (3, {"b00001", "b00002", "b00003"}, set(partitions))


def test_only_the_owner_can_read_a_backup(server: Server, store: ArtefactStore, tmp_path: Path) -> None:
    patient_key(store)
    backup = back_up(_tools(server), store, tmp_path / "backups", owner=None)
    paths = [backup.folder, *sorted(backup.folder.rglob("*"))]
    assert [path.name for path in paths[1:]] == ["backup.json", "database.dump", "ledger", "patient_key"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()}
    assert modes == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}


def test_restoring_refuses_to_overwrite_and_keeps_the_earlier_ledger_when_told_to(
    server: Server, store: ArtefactStore, tmp_path: Path
) -> None:
    _work(server, tmp_path / "home", store, "b00001")
    backup = back_up(_tools(server), store, tmp_path / "backups")
    saved = _state(server, tmp_path / "home")
    (store.root / "ledger/further.parquet").write_bytes(b"newer")
    _work(server, tmp_path / "home", store, "b00002")
    newer, ledger = _state(server, tmp_path / "home"), _bytes(store.root / "ledger")

    with pytest.raises(RestoreRefusedError, match=r"tables in the database, .*ledger.*--overwrite"):
        restore(_tools(server), store, backup)
    assert _state(server, tmp_path / "home") == newer
    assert _bytes(store.root / "ledger") == ledger

    moved = restore(_tools(server), store, backup, overwrite=True)
    assert moved is not None
    assert _bytes(moved) == ledger
    assert "further.parquet" not in _bytes(store.root / "ledger")
    assert _state(server, tmp_path / "home") == saved
    # What was restored can be backed up and restored again.
    restore(_tools(server), store, back_up(_tools(server), store, tmp_path / "backups"), overwrite=True)
    assert _state(server, tmp_path / "home") == saved


def test_restoring_refuses_while_something_uses_the_database(
    server: Server, store: ArtefactStore, tmp_path: Path
) -> None:
    backup = back_up(_tools(server), store, tmp_path / "backups")
    connection = psycopg2.connect(server.url.replace("+psycopg2", ""))
    with pytest.raises(RestoreRefusedError, match="open sessions; stop what uses it"):
        restore(_tools(server), store, backup, overwrite=True)
    connection.close()
    restore(_tools(server), store, backup)


def test_a_key_that_is_kept_elsewhere_is_put_back_there(
    server: Server, store: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "vault/pseudonyms.key"
    monkeypatch.setenv("UVEITIS_PATIENT_KEY_FILE", str(key))
    name = pseudonym(patient_key(store), *PATIENT)
    backup = back_up(_tools(server), store, tmp_path / "backups")
    key.unlink()
    restore(_tools(server), store, backup)
    assert pseudonym(patient_key(store), *PATIENT) == name
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert list((store.root / "ledger").iterdir()) == []


# The second is as in a container: a program goes on when who called it is killed.
@pytest.mark.parametrize("prefix", [(), ("bash", "-c", '"$@"; exit $?', "bash")], ids=["direct", "through another"])
def test_a_damaged_backup_is_refused_and_a_dump_that_fails_changes_nothing(
    server: Server, store: ArtefactStore, tmp_path: Path, prefix: tuple[str, ...]
) -> None:
    _work(server, tmp_path / "home", store, "b00001")
    before, ledger = _state(server, tmp_path / "home"), _bytes(store.root / "ledger")
    backup = back_up(_tools(server), store, tmp_path / "backups")
    dump = backup.folder / "database.dump"
    whole = dump.read_bytes()
    dump.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(BackupError, match=r"database.dump: expected SHA-256"):
        Backup.read(backup.folder)
    # Even where it is not looked at: all of it or nothing.
    tools = PostgresTools(prefix, _tools(server).database)
    with pytest.raises(PostgresToolError, match="pg_restore ended with 1"):
        restore(tools, store, backup, overwrite=True)
    assert _state(server, tmp_path / "home") == before
    assert _bytes(store.root / "ledger") == ledger
    assert sorted(path.name for path in store.root.iterdir() if "restoring" in path.name) == []
    dump.write_bytes(whole)
    with pytest.raises(PostgresToolError, match=r"psql ended with 3: .*nothing_like_this"):
        tools.restore(dump, "SELECT * FROM nothing_like_this;")
    assert _state(server, tmp_path / "home") == before
    (backup.folder / "backup.json").unlink()
    with pytest.raises(BackupError, match=r"found none: it is no backup, or one that ended early"):
        Backup.read(backup.folder)


def test_a_backup_that_fails_leaves_nothing_behind(store: ArtefactStore, tmp_path: Path) -> None:
    away = PostgresTools.of_this_machine(f"postgresql://dagster@/dagster?host={tmp_path}")
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed")
    with pytest.raises(PostgresToolError, match="pg_dump ended with 1"):
        back_up(away, store, tmp_path / "backups")
    assert list((tmp_path / "backups").iterdir()) == []
    with pytest.raises(BackupError, match="expected a folder outside"):
        back_up(away, store, store.root / "backups")


def test_the_commands_back_up_and_restore(server: Server, store: ArtefactStore, tmp_path: Path) -> None:
    _work(server, tmp_path / "home", store, "b00001")
    before = _state(server, tmp_path / "home")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "uveitis_assets.cli", *arguments, "--database-url"]
        return subprocess.run(
            [*command, server.url.replace("+psycopg2", "")],
            env=os.environ | {"UVEITIS_DATA": str(store.root)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = call("backup", str(tmp_path / "backups"))
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (tmp_path / "backups").iterdir()
    assert str(folder) in done.stdout
    refused = call("restore", str(folder))
    assert (refused.returncode, "--overwrite" in refused.stdout) == (2, True)
    done = call("restore", str(folder), "--overwrite")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ledger-before-" in done.stdout
    assert _state(server, tmp_path / "home") == before


# Calls the programs of this machine where the deployment's container has its own.
_DOCKER = """\
#!/bin/bash
if [[ $3 == ps ]]; then
  case "$*" in
    *service=postgres*) echo database ;;
    *compose.project=*) echo database; cat "$FAKE_SERVICES" 2>/dev/null ;;
  esac
  exit 0
fi
[[ "$*" == "--host unix:///run/engine.sock exec --interactive database sh -c "* ]] || exit 9
shift 5
exec "${@/#--dbname=*/--dbname=$FAKE_DATABASE}"
"""


def test_the_deployments_database_is_reached_in_its_container_and_restored_only_at_rest(
    server: Server, store: ArtefactStore, tmp_path: Path
) -> None:
    patient_key(store)
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin/docker"
    docker.write_text(_DOCKER)
    docker.chmod(0o755)
    (tmp_path / "password").write_text("secret")
    values = {"DEPLOYMENT": "clinic", "IMAGE_TAG": "image", "DOCKER_SOCKET": "/run/engine.sock", "PORT": "3000"}
    values |= {"UVEITIS_UID": "4321", "UVEITIS_GID": "4322", "DATA": str(store.root), "RAW": str(store.raw)}
    values |= {"STATE": str(tmp_path), "SECRETS": str(tmp_path)}
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "FAKE_DATABASE": server.url.replace("+psycopg2", ""),
        "FAKE_SERVICES": str(tmp_path / "services"),
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"),
        # Of this shell; the deployment has its key with the data.
        "UVEITIS_PATIENT_KEY_FILE": "/nowhere",
    }

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "uveitis_assets.cli", *arguments, "--settings", str(tmp_path / "env")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = call("backup", str(tmp_path / "backups"))
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (tmp_path / "backups").iterdir()
    if os.geteuid() == 0:
        assert {path.stat().st_uid for path in (folder, *folder.rglob("*"))} == {4321}
    (tmp_path / "services").write_text("daemon\n")
    refused = call("restore", str(folder), "--overwrite")
    assert (refused.returncode, "found 1 services and 0 runs at work" in refused.stdout) == (2, True)
    (tmp_path / "services").unlink()
    done = call("restore", str(folder), "--overwrite")
    assert done.returncode == 0, done.stdout + done.stderr
    if os.geteuid() == 0:
        assert (store.root / "ledger/patient_key").stat().st_uid == 4321
