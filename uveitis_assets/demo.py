"""The demo: sample images through two lanes, a small detector on the CPU, and its predictions.

It runs the jobs that the UI and the daemon run, on the same instance, so that all results are in the UI.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from rich.progress import Progress, TaskID
from rich.table import Table

from uveitis_assets.cli_output import console, fail
from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.registration import register_lane
from uveitis_assets.definitions import defs
from uveitis_assets.orchestration.defs_files import PACKAGE
from uveitis_assets.orchestration.fold_keys import fold_key
from uveitis_assets.orchestration.partition_runs import range_tags
from uveitis_assets.storage.files import read_json, write_bytes
from uveitis_assets.storage.store import ArtefactStore

_LANES = ("uwf700", "fgadr")
_SAMPLE_MARK = ".sample_images"
_DETECTOR = "overfit_10"
_DETECTOR_LANE = "uwf700"


def run_demo(
    store: ArtefactStore,
    instance: dg.DagsterInstance,
    lanes: Mapping[str, LaneConfiguration],
    *,
    n_uwf: int,
    n_fgadr: int,
    seed: int,
    detector: bool,
) -> None:
    """Write the sample, run lanes and detector, print tables of the results and how to open the UI.

    Args:
        store: where everything goes.
        instance: Dagster's instance that records it.
        lanes: the configured lanes.
        n_uwf: ultra-widefield sample images.
        n_fgadr: regular sample images.
        seed: of the sample.
        detector: also train a small detector and predict with it.
    """
    started = time.perf_counter()
    _write_sample(store, n_uwf, n_fgadr, seed)
    definitions = defs()
    rows = [_run_lane(store, lanes[name], instance, definitions) for name in _LANES]
    detected = _run_detector(store, lanes[_DETECTOR_LANE], instance, definitions) if detector else None
    table = Table(title=f"Made in {time.perf_counter() - started:.0f} s under {store.root}")
    for column in ("lane", "images", "masks", "tiles", "labelled", "boxes", "quarantined", "checks"):
        table.add_column(column, justify="left" if column == "lane" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if detected is not None:
        console.print(detected)
        console.print(
            f"Detections drawn on the images: {store.prediction_overlay(_DETECTOR, 'any').parent}", soft_wrap=True
        )
    console.print("Open the UI with [bold]make dev[/bold] and go to http://127.0.0.1:3000")


def _write_sample(store: ArtefactStore, n_uwf: int, n_fgadr: int, seed: int) -> None:
    """Write the sample once; folders with other images are refused."""
    from uveitis_assets.sample import write_sample

    wanted = f"uwf {n_uwf} fgadr {n_fgadr} seed {seed}\n".encode()
    unfinished = b"unfinished " + wanted
    mark = store.raw / _SAMPLE_MARK
    found = mark.read_bytes() if mark.exists() else b""
    if found == wanted:
        console.print(f"Sample images are in {store.raw}")
        return
    for landing in (store.raw / "uwf-700", store.raw / "fgadr"):
        if found != unfinished and landing.is_dir() and any(landing.iterdir()):
            fail(f"{landing}: found other images than this sample; set UVEITIS_DATA to another folder for the demo")
    write_bytes(mark, unfinished)
    with Progress(console=console) as progress:
        task = progress.add_task("Sample images", total=n_uwf + n_fgadr)
        write_sample(store.raw, n_uwf=n_uwf, n_fgadr=n_fgadr, seed=seed, on_written=lambda *_: progress.advance(task))
    write_bytes(mark, wanted)


def _run_lane(
    store: ArtefactStore, lane: LaneConfiguration, instance: dg.DagsterInstance, definitions: dg.Definitions
) -> tuple[str, ...]:
    """Register the lane, run its batches and its labels; returns a row of the final table."""
    from uveitis_assets.landing.ledger import registered_batches

    keys = LaneKeys.of(lane)
    report, _ = register_lane(store, lane, instance)
    folder = store.tiles_metadata("any").parent
    evaluations: list[dg.AssetCheckEvaluation] = []
    for job, partitions in (
        (keys.lane_job, registered_batches(store, lane.name)),
        (keys.labels_job, keys.fold_splits.get_partition_keys()),
    ):
        with _progress_of(job, report.n_images, lambda: sum(1 for _ in folder.glob(f"{lane.name}__*.json"))):
            evaluations += _run_job(instance, definitions, job, partitions)
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
        _check_summary(evaluations),
    )


def _run_detector(
    store: ArtefactStore, lane: LaneConfiguration, instance: dg.DagsterInstance, definitions: dg.Definitions
) -> Table:
    """Train and evaluate one fold, predict the lane's batches; returns a table of the results."""
    from uveitis_assets.landing.ledger import registered_batches

    folder = store.run_folder(_DETECTOR, 0)
    on_cpu = {"ops": {f"{_DETECTOR}__checkpoint": {"config": {"device": "cpu"}}}}
    defs_yaml = PACKAGE / "defs" / _DETECTOR / "defs.yaml"
    n_epochs = yaml.safe_load(defs_yaml.read_bytes())["attributes"]["training"]["epochs"]
    with _progress_of(f"{_DETECTOR}_training", n_epochs, lambda: _n_lines(folder / "metrics.jsonl")):
        evaluations = _run_job(instance, definitions, f"{_DETECTOR}_training", [fold_key(0)], on_cpu)
    predictions = store.prediction_file(_DETECTOR, "any").parent
    batches = registered_batches(store, lane.name)
    with _progress_of(f"{_DETECTOR}_predictions", None, lambda: sum(1 for _ in predictions.glob("*.json"))):
        evaluations += _run_job(instance, definitions, f"{_DETECTOR}_predictions", batches)
    precision = read_json(folder / "val_report.json")["ap"]
    found = [read_json(path)["predictions"] for path in sorted(predictions.glob("*.json"))]
    table = Table(title="A small detector, overfitted to ten of these images")
    row = {
        "detector": _DETECTOR,
        "AP at IoU 0.3": f"{precision['0.3']:.3f}",
        "AP at IoU 0.5": f"{precision['0.5']:.3f}",
        "images": str(len(found)),
        "detections": str(sum(len(detections) for detections in found)),
        "checks": _check_summary(evaluations),
    }
    for column in row:
        table.add_column(column, justify="left" if column == "detector" else "right")
    table.add_row(*row.values())
    return table


def _run_job(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    job: str,
    partitions: Sequence[str],
    configuration: Mapping[str, Any] | None = None,
) -> list[dg.AssetCheckEvaluation]:
    result = definitions.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags=range_tags(partitions[0], partitions[-1]),
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}, **(configuration or {})},
        raise_on_error=False,
    )
    if not result.success:
        fail(f"the run {result.run_id} of {job} failed; open it with `make dev`")
    return list(result.get_asset_check_evaluations())


def _check_summary(evaluations: Sequence[dg.AssetCheckEvaluation]) -> str:
    failed = [evaluation for evaluation in evaluations if not evaluation.passed]
    errors = sum(evaluation.severity.value == "ERROR" for evaluation in failed)
    if errors:
        return f"{errors} failed"
    return f"passed, {len(failed)} warning" if failed else "passed"


def _n_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


@contextmanager
def _progress_of(title: str, total: int | None, done: Callable[[], int]) -> Iterator[None]:
    """A progress bar of ``done`` while the run goes on in this thread."""
    ended = threading.Event()

    def watch(progress: Progress, task: TaskID) -> None:
        while not ended.wait(0.3):
            progress.update(task, completed=done())

    with Progress(console=console) as progress:
        task = progress.add_task(title, total=total)
        watcher = threading.Thread(target=watch, args=(progress, task), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
        progress.update(task, completed=total or done(), total=total or done())
