"""Commands beyond Dagster's own: images, labels, demo, runs on a deployment, detections.

Everything else is Dagster's own command line (``dagster asset materialize``, ``dagster dev``). Registering and the
demo need DAGSTER_HOME, because partition keys live in the instance's database.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uveitis_assets import cli_operation
from uveitis_assets.cli_detectors import evaluate_command, export_onnx_command, export_predictions_command
from uveitis_assets.cli_output import console, fail

if TYPE_CHECKING:
    import dagster as dg

    from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
    from uveitis_assets.storage.store import ArtefactStore

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Retinal-imaging data assets on Dagster.",
)
app.add_typer(cli_operation.app)
_SETTINGS = Path("docker/.env")


@app.callback()
def main() -> None:
    """Retinal-imaging data assets on Dagster."""


@app.command()
def register(
    lanes: Annotated[list[str] | None, typer.Argument(help="Lanes to register; none: all whose folder exists")] = None,
) -> None:
    """Find new images, assign them to batches, add partition keys, print what to run. Idempotent."""
    from uveitis_assets.components.fundus.registration import register_lane
    from uveitis_assets.fundus.reference_color import ReferenceColorError
    from uveitis_assets.landing.ledger_table import LedgerError
    from uveitis_assets.landing.pseudonyms import PatientKeyError
    from uveitis_assets.landing.registration import RegistrationRefusedError
    from uveitis_assets.registration_output import print_commands, print_registration
    from uveitis_assets.storage.store import ArtefactStore

    configured = _load_lanes()
    unknown = sorted(set(lanes or ()) - set(configured))
    if unknown:
        fail(f"found no lane {', '.join(unknown)}; expected one of {', '.join(configured)}")
    store = ArtefactStore.from_environment()
    folders = {name: _landing_folder(store, configured[name]) for name in lanes or configured}
    chosen = lanes or [name for name, folder in folders.items() if folder.is_dir()]
    if not chosen:
        fail(f"{store.raw}: found none of the lanes' folders; land images there or set UVEITIS_RAW")
    refused: list[str] = []
    with _instance() as instance:
        for name in chosen:
            if not folders[name].is_dir():
                fail(
                    f"{folders[name]}: expected the landing folder of {name}, found none; create it, or set UVEITIS_RAW"
                )
            try:
                report, added = register_lane(store, configured[name], instance)
                print_registration(name, report, added)
                print_commands(store, configured[name])
            except RegistrationRefusedError as error:
                # The other lanes are registered all the same.
                refused.append(str(error))
            except (LedgerError, PatientKeyError, ReferenceColorError) as error:
                fail(str(error))
            except OSError as error:
                fail(
                    f"{error.filename}: {error.strerror}; expected to write below UVEITIS_DATA ({store.root}) and to "
                    f"read below UVEITIS_RAW ({store.raw}): correct the folder, or set the variable to another one"
                )
    if refused:
        fail("\n".join(refused))


@app.command(name="import-labels")
def import_labels_command(
    lane: Annotated[str, typer.Argument(help="Lane whose images the labels are of")],
    source: Annotated[Path, typer.Argument(help="A label file, or a folder of them", exists=True)],
    *,
    label_format: Annotated[
        str,
        typer.Option("--format", help="coco, yolo, yolo-obb, yolo-seg, dota, cvat, labelme or label-studio"),
    ],
    units: Annotated[str | None, typer.Option(help="Coordinates of YOLO and DOTA files: pixel or share")] = None,
    first_class: Annotated[int | None, typer.Option(help="First class number of YOLO files", min=0, max=1)] = None,
    names: Annotated[
        Path | None, typer.Option(help="Names of YOLO's class numbers: a line each, or data.yaml", exists=True)
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--class", help="Class of the files=class of the lane; 'name=' leaves it out; may be repeated"),
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Take predictions from this confidence on as labels", min=0.0, max=1.0)
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace all label files that the images have")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report only, write nothing")] = False,
) -> None:
    """Convert label files of other tools into the lane's own, beside its landed images.

    The exit status is 1 when rows are refused: their images get no label file.
    """
    from uveitis_assets.import_output import run_import
    from uveitis_assets.storage.store import ArtefactStore

    configured = _load_lanes()
    if lane not in configured:
        fail(f"found no lane {lane}; expected one of {', '.join(configured)}")
    complete = run_import(
        ArtefactStore.from_environment(),
        configured[lane],
        source,
        label_format=label_format,
        units=units,
        first_class=first_class,
        names=names,
        mapping=mapping or [],
        min_confidence=min_confidence,
        replace=replace,
        dry_run=dry_run,
    )
    if not complete:
        raise typer.Exit(1)


@app.command()
def demo(
    n_uwf: Annotated[int, typer.Option(help="Ultra-widefield sample images", min=3)] = 24,
    n_fgadr: Annotated[int, typer.Option(help="Regular fundus sample images", min=3)] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the sample")] = 0,
    detector: Annotated[bool, typer.Option(help="Train a small detector and predict with it")] = True,
) -> None:
    """Run the lanes uwf700 and fgadr on sample images, and a small detector on the CPU."""
    from uveitis_assets.demo import run_demo
    from uveitis_assets.storage.store import ArtefactStore

    with _instance() as instance:
        run_demo(
            ArtefactStore.from_environment(),
            instance,
            _load_lanes(),
            n_uwf=n_uwf,
            n_fgadr=n_fgadr,
            seed=seed,
            detector=detector,
        )


@app.command()
def submit(
    assets: Annotated[list[str], typer.Argument(help="Assets such as uwf700/tiles, or whole lanes such as uwf700")],
    *,
    partition: Annotated[str | None, typer.Option(help="One partition, such as b00001 or 'fold0|train'")] = None,
    partition_range: Annotated[str | None, typer.Option(help="Neighbouring partitions, as first...last")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Partitions that were never materialized")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All partitions, also those that exist")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Tag of each run, as key=value; may be repeated")] = None,
    longest: Annotated[int, typer.Option("--partitions-per-run", help="Most partitions of one run", min=1)] = 16,
    url: Annotated[str, typer.Option(envvar="UVEITIS_URL", help="The deployment's UI")] = "http://127.0.0.1:3000",
) -> None:
    """Queue runs on the deployment and follow them.

    The exit status is 1 when a run fails or is deleted, 2 when none was queued.
    """
    from uveitis_assets.deployment.graphql_client import WebserverError
    from uveitis_assets.deployment.submission_plan import SubmissionError, Wanted
    from uveitis_assets.deployment.submit import submit_and_follow

    wanted = Wanted(partition=partition, partition_range=partition_range, missing=missing, everything=everything)
    tags = dict(_parse_tag(text) for text in tag or ())
    try:
        succeeded = submit_and_follow(url, assets, wanted, tags=tags, longest=longest, console=console)
    except (SubmissionError, WebserverError) as error:
        fail(str(error))
    if not succeeded:
        raise typer.Exit(1)


def _parse_tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        fail(f"--tag: expected key=value, such as uveitis/gpu=required, found {text!r}; nothing was queued")
    return key, value


@app.command()
def doctor(
    settings: Annotated[
        Path,
        typer.Option(envvar="UVEITIS_SETTINGS", help="Settings of the deployment, as docker/prepare.sh wrote them"),
    ] = _SETTINGS,
) -> None:
    """Check the deployment on this host, or a single machine; every failure comes with its remedy."""
    from uveitis_assets.deployment.doctor import examine
    from uveitis_assets.storage.store import ArtefactStore

    # A file that is named explicitly means a deployment.
    if settings != _SETTINGS and not settings.is_file():
        fail(f"{settings}: expected the settings that docker/prepare.sh wrote, found no such file")
    if not examine(settings, ArtefactStore.from_environment().root, console):
        raise typer.Exit(1)


app.command("export-predictions")(export_predictions_command)
app.command("export-onnx")(export_onnx_command)
app.command("evaluate")(evaluate_command)


def _landing_folder(store: "ArtefactStore", lane: "LaneConfiguration") -> Path:
    from uveitis_assets.storage.files import PathEscapesRootError

    try:
        return store.raw_folder(lane.folder)
    except PathEscapesRootError as error:
        fail(f"{lane.name}: {error}, or set UVEITIS_RAW to its parent folder")


def _load_lanes() -> "dict[str, LaneConfiguration]":
    from uveitis_assets.components.fundus.lanes import LanesError, load_lanes

    try:
        return load_lanes()
    except LanesError as error:
        fail(str(error))


@contextmanager
def _instance() -> "Iterator[dg.DagsterInstance]":
    import dagster as dg

    home = os.environ.get("DAGSTER_HOME")
    if not home:
        fail(
            "DAGSTER_HOME is not set: expected the folder of Dagster's database, e.g. export DAGSTER_HOME=$PWD/"
            ".dagster_home with dagster.yaml in it; without it partition keys would be lost"
        )
    if not Path(home).is_absolute():
        fail(f"DAGSTER_HOME={home}: expected an absolute path; export DAGSTER_HOME={Path(home).resolve()}")
    try:
        Path(home).mkdir(parents=True, exist_ok=True)
        # Whether it has to be written depends on the dagster.yaml in it: the deployment's database is on a server.
        opened = dg.DagsterInstance.get()
    except OSError as error:
        fail(
            f"DAGSTER_HOME={home}: expected a folder that can be made and written, found {error.strerror} "
            f"({error.filename}); correct the folder, or set DAGSTER_HOME to another one"
        )
    with opened as instance:
        yield instance


if __name__ == "__main__":
    app()
