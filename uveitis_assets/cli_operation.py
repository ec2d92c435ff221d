"""Commands that operate a deployment: backup, restore, retention, a test of its alerts."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uveitis_assets.cli_output import console, fail

if TYPE_CHECKING:
    from uveitis_assets.deployment.postgres_tools import PostgresTools
    from uveitis_assets.storage.store import ArtefactStore

app = typer.Typer()
_SETTINGS = Path("docker/.env")
_Settings = Annotated[
    Path, typer.Option(envvar="UVEITIS_SETTINGS", help="Settings of the deployment, as docker/prepare.sh wrote them")
]
_DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="Another database than the deployment's, as postgresql://...; artefacts are in UVEITIS_DATA"),
]


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Folder of the backups, outside the data; each gets a folder there")],
    *,
    settings: _Settings = _SETTINGS,
    database_url: _DatabaseUrl = None,
) -> None:
    """Back up Dagster's database, the ledger and the key of the pseudonyms, while the deployment runs."""
    from uveitis_assets.deployment.backup import BackupError, back_up
    from uveitis_assets.deployment.postgres_tools import PostgresToolError

    tools, store, owner = _open(settings, database_url, at_rest=False)
    try:
        made = back_up(tools, store, folder, owner=owner)
    except (BackupError, PostgresToolError, OSError) as error:
        fail(str(error))
    console.print(f"{len(made.files)} files, readable by their owner only: {made.folder}", soft_wrap=True)
    if not any(name.endswith("/patient_key") for name in made.files):
        console.print("There was no key of the pseudonyms yet: no patient has one.", soft_wrap=True)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="One backup: the folder with backup.json")],
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a database and a ledger that exist")] = False,
    settings: _Settings = _SETTINGS,
    database_url: _DatabaseUrl = None,
) -> None:
    """Put a backup back while the services are stopped; an earlier ledger is kept under another name."""
    from uveitis_assets.deployment.backup import Backup, BackupError
    from uveitis_assets.deployment.postgres_tools import PostgresToolError
    from uveitis_assets.deployment.restore import RestoreRefusedError
    from uveitis_assets.deployment.restore import restore as put_back

    try:
        found = Backup.read(folder)
        tools, store, owner = _open(settings, database_url, at_rest=True)
        earlier = put_back(tools, store, found, overwrite=overwrite, owner=owner)
    except (BackupError, PostgresToolError, RestoreRefusedError, OSError) as error:
        fail(str(error))
    console.print(f"restored the backup of {found.made_at}", soft_wrap=True)
    if earlier is not None:
        console.print(f"the earlier ledger, with its key, is in {earlier}", soft_wrap=True)


@app.command()
def prune(
    *,
    older_than_days: Annotated[int, typer.Option(help="Runs that ended before so many days", min=1)] = 90,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, remove nothing")] = False,
) -> None:
    """Remove old finished runs with their events and output; needs DAGSTER_HOME.

    Runs that hold the newest materialization of a partition stay, without their output.
    """
    import dagster as dg

    from uveitis_assets.deployment.retention import remove_old_runs

    if not os.environ.get("DAGSTER_HOME"):
        fail("DAGSTER_HOME is not set: expected the folder of Dagster's settings, which say where its database is")
    before = datetime.now(UTC) - timedelta(days=older_than_days)
    with dg.DagsterInstance.get() as instance:
        removal = remove_old_runs(instance, before, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    console.print(
        f"{verb} {len(removal.runs)} runs that ended before {before:%Y-%m-%d}, and the output of "
        f"{len(removal.outputs_only)} more, which hold what the UI shows of assets",
        soft_wrap=True,
        highlight=False,
    )


@app.command("alert-test")
def alert_test(
    file: Annotated[Path, typer.Argument(help="Settings of the alerts: alerts.yaml of the monitor")],
) -> None:
    """Send a message as alerts are sent, by mail and webhook, and say whether it was taken."""
    from uveitis_assets.deployment.monitoring.alert_settings import AlertSettings, AlertSettingsError
    from uveitis_assets.deployment.monitoring.delivery import DeliveryError, deliver

    try:
        settings = AlertSettings.read(file)
        ways = deliver(settings, f"[{settings.name}] test of the alerts", "This is a test; nothing is wrong.")
    except (AlertSettingsError, DeliveryError) as error:
        fail(str(error))
    if not ways:
        fail(f"{file}: found neither mail nor webhook; nobody would be told")
    console.print(f"sent: {', '.join(ways)}", soft_wrap=True)


def _open(
    settings: Path, database_url: str | None, *, at_rest: bool
) -> "tuple[PostgresTools, ArtefactStore, tuple[int, int] | None]":
    """Programs of the database, the artefacts' store, and who shall own new files where root calls."""
    from uveitis_assets.deployment.database_container import ServicesError, check_at_rest, find_database
    from uveitis_assets.deployment.postgres_tools import PostgresTools
    from uveitis_assets.deployment.settings import DeploymentSettings, SettingsError
    from uveitis_assets.storage.store import ArtefactStore

    if database_url is not None:
        return PostgresTools.of_this_machine(database_url), ArtefactStore.from_environment(), None
    if not settings.is_file():
        fail(f"{settings}: expected the settings that docker/prepare.sh wrote, found no such file; or --database-url")
    try:
        found = DeploymentSettings.read(settings)
        if at_rest:
            check_at_rest(found)
        tools = find_database(found)
    except (SettingsError, ServicesError) as error:
        fail(str(error))
    # The deployment has its key with the data, whatever this shell uses elsewhere.
    os.environ.pop("UVEITIS_PATIENT_KEY_FILE", None)
    owner = (found.uid, found.gid) if os.geteuid() == 0 else None
    return tools, ArtefactStore(root=found.data.resolve(), raw=found.raw.resolve()), owner
