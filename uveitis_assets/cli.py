"""The verbs that Dagster lacks: register landed images, run the demo.

Everything else is Dagster's own command line (``dagster asset materialize``, ``dagster dev``). Both verbs need
DAGSTER_HOME, because partition keys live in the instance's database.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import dagster as dg
    from rich.progress import TaskID

    from uveitis_assets.fundus.configuration import LaneConfiguration
    from uveitis_assets.fundus.ledger import RegistrationReport
    from uveitis_assets.storage import ArtefactStore

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Retinal-imaging data assets on Dagster.",
)
console = Console()
_LISTED = 10
_DEMO_LANES = ("uwf700", "fgadr")


@app.callback()
def main() -> None:
    """Retinal-imaging data assets on Dagster."""


@app.command()
def register(
    lanes: Annotated[list[str] | None, typer.Argument(help="Lanes to register; none: all whose folder exists")] = None,
) -> None:
    """Find new images, assign them to batches in the ledger, add the partition keys and say what to run. Idempotent."""
    from uveitis_assets.storage import ArtefactStore

    configured = _load_lanes()
    unknown = sorted(set(lanes or ()) - set(configured))
    if unknown:
        _fail(f"found no lane {', '.join(unknown)}; expected one of {', '.join(configured)}")
    store = ArtefactStore.from_environment()
    folders = {name: _landing_folder(store, configured[name]) for name in lanes or configured}
    chosen = lanes or [name for name, folder in folders.items() if folder.is_dir()]
    if not chosen:
        _fail(f"{store.raw}: found none of the lanes' folders; land images there or set UVEITIS_RAW")
    with _instance() as instance:
        for name in chosen:
            if not folders[name].is_dir():
                _fail(f"{folders[name]}: expected the landing folder of {name}, found none")
            report, added = _register_lane(store, configured[name], instance)
            _print_registration(name, report, added)
            _print_commands(store, configured[name])


@app.command()
def demo(
    n_uwf: Annotated[int, typer.Option(help="Ultra-widefield sample images", min=3)] = 24,
    n_fgadr: Annotated[int, typer.Option(help="Regular fundus sample images", min=3)] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the sample")] = 0,
) -> None:
    """Write sample images and run the lanes uwf700 and fgadr on them, from manifest to COCO labels."""
    from uveitis_assets.storage import ArtefactStore

    started = time.perf_counter()
    store = ArtefactStore.from_environment()
    with _instance() as instance:
        _write_sample(store, n_uwf, n_fgadr, seed)
        configured = _load_lanes()
        rows = [_run_lane(store, configured[name], instance) for name in _DEMO_LANES]
    table = Table(title=f"Made in {time.perf_counter() - started:.0f} s under {store.root}")
    for column in ("lane", "images", "masks", "tiles", "labelled", "boxes", "quarantined", "checks"):
        table.add_column(column, justify="left" if column == "lane" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print("Open the UI with [bold]make dev[/bold] and go to http://127.0.0.1:3000")


def _landing_folder(store: "ArtefactStore", lane: "LaneConfiguration") -> Path:
    from uveitis_assets.storage import PathEscapesRootError

    try:
        return store.raw_folder(lane.folder)
    except PathEscapesRootError as error:
        _fail(f"{lane.name}: {error}, or set UVEITIS_RAW to the folder that it lies in")


def _load_lanes() -> "dict[str, LaneConfiguration]":
    from pydantic import ValidationError

    from uveitis_assets.components.lanes import load_lanes
    from uveitis_assets.fundus.lane_conflicts import LaneConflictError

    try:
        return load_lanes()
    except Exception as error:
        # Dagster wraps what is wrong with a defs.yaml in a tree of all components and a long trace.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ValidationError | LaneConflictError):
                _fail(str(cause))
            cause = cause.__cause__
        raise


@contextmanager
def _instance() -> "Iterator[dg.DagsterInstance]":
    import dagster as dg

    home = os.environ.get("DAGSTER_HOME")
    if not home:
        _fail(
            "DAGSTER_HOME is not set: expected the folder of Dagster's database, e.g. export DAGSTER_HOME=$PWD/"
            ".dagster_home with dagster.yaml in it; without it partition keys would be lost"
        )
    if not Path(home).is_absolute():
        _fail(f"DAGSTER_HOME={home}: expected an absolute path; export DAGSTER_HOME={Path(home).resolve()}")
    Path(home).mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance.get() as instance:
        yield instance


def _register_lane(
    store: "ArtefactStore", lane: "LaneConfiguration", instance: "dg.DagsterInstance"
) -> "tuple[RegistrationReport, int]":
    """Register and bring the instance's partition keys up to the ledger; returns the number of keys added."""
    from uveitis_assets.components.lane_keys import LaneKeys
    from uveitis_assets.fundus.ledger import register, registered_batches

    store.remove_dead_partial_files()
    report = register(store, lane)
    name = LaneKeys.of(lane).batches_name
    known = set(instance.get_dynamic_partitions(name))
    added = [batch for batch in registered_batches(store, lane.name) if batch not in known]
    for start in range(0, len(added), 10_000):
        instance.add_dynamic_partitions(name, added[start : start + 10_000])
    return report, len(added)


def _print_registration(lane: str, report: "RegistrationReport", added: int) -> None:
    console.print(
        f"[bold]{lane}[/bold]: {report.n_images} images, {len(report.new)} new, {len(report.changed)} changed, "
        f"{len(report.renamed)} renamed, {len(report.relabelled)} relabelled, {len(report.gone)} gone, "
        f"{len(report.returned)} returned; {added} partition keys added",
        highlight=False,
        soft_wrap=True,
    )
    for kind in ("new", "changed", "renamed", "relabelled", "gone", "returned", "duplicates"):
        _print_list(kind, getattr(report, kind))
    if report.new_batches:
        _print_list("new batches", report.new_batches)
    if report.touched_batches:
        _print_list("batches to materialize again", report.touched_batches)
    _print_list("quarantined", [f"{image_id}: {reason}" for image_id, reason in sorted(report.quarantined.items())])
    _print_list("problems", [f"{problem.path}: {problem.detail}" for problem in report.problems])


def _print_commands(store: "ArtefactStore", lane: "LaneConfiguration") -> None:
    """What to type to bring the lane up to date; the sensors of a running daemon do the same by themselves."""
    from uveitis_assets.components.lane_keys import LaneKeys
    from uveitis_assets.components.partition_runs import contiguous_ranges
    from uveitis_assets.fundus.ledger import registered_batches
    from uveitis_assets.fundus.reference_color import present_reference_digest
    from uveitis_assets.fundus.stale_batches import stale_batches

    stale = stale_batches(store, lane.name, reference_color=present_reference_digest(store, lane.normalize))
    if not stale.batches:
        return
    keys = LaneKeys.of(lane)
    batches = registered_batches(store, lane.name)
    whole = set(stale.preprocessing)
    wanted: list[tuple[Sequence[dg.AssetKey], str, str]] = [
        *((keys.batch_assets, *keys_of) for keys_of in contiguous_ranges(batches, whole, len(batches))),
        *(
            ((keys.manifest,), *keys_of)
            for keys_of in contiguous_ranges(batches, set(stale.manifest) - whole, len(batches))
        ),
    ]
    if lane.labels.format != "none":
        partitions = keys.fold_splits.get_partition_keys()
        wanted.append(((keys.coco_labels,), partitions[0], partitions[-1]))
    console.print("  to do now what the sensors of a running daemon do by themselves:", highlight=False)
    for assets, first, last in wanted:
        selection = ",".join(key.to_user_string() for key in assets)
        chosen = f"--partition {first}" if first == last else f"--partition-range '{first}...{last}'"
        console.print(
            f"    dagster asset materialize -m uveitis_assets.definitions --select '{selection}' {chosen}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _print_list(title: str, items: Sequence[str]) -> None:
    if items:
        more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
        console.print(f"  {title}: {', '.join(items[:_LISTED])}{more}", markup=False, highlight=False, soft_wrap=True)


_SAMPLE_MARK = ".sample_images"


def _write_sample(store: "ArtefactStore", n_uwf: int, n_fgadr: int, seed: int) -> None:
    """Write the sample once; folders that hold anything else, real images or another sample, are left alone."""
    from rich.progress import Progress

    from uveitis_assets.sample import write_sample
    from uveitis_assets.storage import write_bytes

    wanted = f"uwf {n_uwf} fgadr {n_fgadr} seed {seed}\n".encode()
    unfinished = b"unfinished " + wanted
    mark = store.raw / _SAMPLE_MARK
    found = mark.read_bytes() if mark.exists() else b""
    if found == wanted:
        console.print(f"Sample images are in {store.raw}")
        return
    for landing in (store.raw / "uwf-700", store.raw / "fgadr"):
        if found != unfinished and landing.is_dir() and any(landing.iterdir()):
            _fail(f"{landing}: found other images than this sample; set UVEITIS_DATA to another folder for the demo")
    write_bytes(mark, unfinished)
    with Progress(console=console) as progress:
        task = progress.add_task("Sample images", total=n_uwf + n_fgadr)
        write_sample(store.raw, n_uwf=n_uwf, n_fgadr=n_fgadr, seed=seed, on_written=lambda *_: progress.advance(task))
    write_bytes(mark, wanted)


def _run_lane(store: "ArtefactStore", lane: "LaneConfiguration", instance: "dg.DagsterInstance") -> tuple[str, ...]:
    """Register the lane, run its batches and its labels in this process; returns a row of the final table."""
    from uveitis_assets.components.lane_keys import LaneKeys
    from uveitis_assets.components.partition_runs import range_tags
    from uveitis_assets.definitions import defs
    from uveitis_assets.fundus.ledger import registered_batches
    from uveitis_assets.storage import read_json

    keys = LaneKeys.of(lane)
    report, _ = _register_lane(store, lane, instance)
    definitions = defs()
    evaluations: list[dg.AssetCheckEvaluation] = []
    for job, partitions in (
        (keys.lane_job, registered_batches(store, lane.name)),
        (keys.labels_job, keys.fold_splits.get_partition_keys()),
    ):
        with _image_progress(store, lane.name, job, report.n_images):
            result = definitions.resolve_job_def(job).execute_in_process(
                instance=instance,
                tags=range_tags(partitions[0], partitions[-1]),
                run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
                raise_on_error=False,
            )
        if not result.success:
            _fail(f"{lane.name}: the run {result.run_id} of {job} failed; open it with `make dev`")
        evaluations += result.get_asset_check_evaluations()
    summary = read_json(store.coco_summary_file())
    entries = [entry for name, entry in summary.items() if name.startswith(f"{lane.name}_")]
    return (
        lane.name,
        str(report.n_images),
        str(sum(1 for path in store.roi_mask("any").parent.glob(f"{lane.name}__*.png"))),
        str(sum(1 for path in store.tile("any", "any").parents[1].glob(f"{lane.name}__*/*.png"))),
        str(sum(entry["global"]["num_images"] for entry in entries)),
        str(sum(entry["global"]["num_annotations"] for entry in entries)),
        str(len(report.quarantined)),
        _verdict(evaluations),
    )


def _verdict(evaluations: "Sequence[dg.AssetCheckEvaluation]") -> str:
    failed = [evaluation for evaluation in evaluations if not evaluation.passed]
    errors = sum(evaluation.severity.value == "ERROR" for evaluation in failed)
    if errors:
        return f"{errors} failed"
    return f"passed, {len(failed)} warning" if failed else "passed"


@contextmanager
def _image_progress(store: "ArtefactStore", lane: str, job: str, n_images: int) -> Iterator[None]:
    """A bar that follows the images whose tiles are there, while the run goes on in this thread."""
    from rich.progress import Progress

    done = threading.Event()
    folder = store.tiles_metadata("any").parent

    def follow(progress: Progress, task: "TaskID") -> None:
        while not done.wait(0.3):
            progress.update(task, completed=sum(1 for _ in folder.glob(f"{lane}__*.json")))

    with Progress(console=console) as progress:
        task = progress.add_task(job, total=n_images)
        follower = threading.Thread(target=follow, args=(progress, task), daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()
        progress.update(task, completed=n_images)


def _fail(message: str) -> NoReturn:
    console.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
