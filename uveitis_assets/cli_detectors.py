"""Commands for detectors: exports of predictions and of weights, and evaluation of results files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uveitis_assets.cli_output import console, fail

if TYPE_CHECKING:
    from uveitis_assets.detection.evaluation.evaluate import Evaluation


def export_predictions_command(
    detector: Annotated[str, typer.Argument(help="Detector lane whose predictions are exported")],
    export_format: Annotated[str, typer.Argument(metavar="FORMAT", help="coco, yolo, voc, fiftyone or cvat")],
    folder: Annotated[Path, typer.Argument(help="Folder that the files are written to")],
    *,
    frame: Annotated[str, typer.Option(help="Pixels of: source, the photographs as landed, or global")] = "source",
    min_score: Annotated[float, typer.Option(help="Leave out detections below", min=0.0, max=1.0)] = 0.0,
    labels: Annotated[Path | None, typer.Option(help="coco: take the image numbers of this COCO file")] = None,
) -> None:
    """Write a detector's predictions as COCO results, YOLO, Pascal VOC, FiftyOne or CVAT files."""
    from typing import get_args

    from uveitis_assets.detection.exports.export import ExportFormat, export_predictions
    from uveitis_assets.detection.exports.predicted_images import ExportFrame
    from uveitis_assets.storage.store import ArtefactStore

    for name, value, choices in (("FORMAT", export_format, ExportFormat), ("--frame", frame, ExportFrame)):
        if value not in get_args(choices):
            fail(f"{name}: expected one of {', '.join(get_args(choices))}, found {value!r}")
    try:
        n_images, n_detections = export_predictions(
            ArtefactStore.from_environment(),
            detector,
            export_format,  # type: ignore[arg-type]  # checked above
            folder,
            frame=frame,  # type: ignore[arg-type]  # checked above
            min_score=min_score,
            labels=labels,
        )
    except (OSError, ValueError) as error:
        fail(str(error))
    console.print(f"{n_detections} detections of {n_images} images: {folder}", soft_wrap=True)


def export_onnx_command(
    detector: Annotated[str, typer.Argument(help="Detector lane whose best checkpoint is exported")],
    file: Annotated[Path, typer.Argument(help="File that is written, ending in .onnx")],
    *,
    fold: Annotated[int, typer.Option(help="Fold of the checkpoint", min=0)] = 0,
    tiles: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures to compare on; none: tiles of learned images", exists=True, file_okay=False
        ),
    ] = None,
) -> None:
    """Write a detector as an ONNX file, once it gives what the checkpoint gives on ten tiles."""
    from uveitis_assets.detection.exports.onnx_export import export_onnx
    from uveitis_assets.storage.store import ArtefactStore

    try:
        done = export_onnx(ArtefactStore.from_environment(), detector, fold, file, tiles=tiles)
    except (ImportError, OSError, ValueError) as error:
        fail(f"{error}; nothing was written")
    equal = done.comparison
    for line in (
        f"{done.path}: {done.n_bytes / 1e6:.1f} MB, checkpoint {done.checkpoint}",
        f"{equal.n_detections} detections of {equal.n_tiles} tiles equal PyTorch's within {equal.largest_px:.2g} px "
        f"and {equal.largest_score:.2g} in the score; {equal.n_undecided} hang on rounding",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def evaluate_command(
    labels: Annotated[Path, typer.Argument(help="COCO file with labelled boxes")],
    results: Annotated[Path, typer.Argument(help="COCO results file: a list of image_id, category_id, bbox, score")],
    *,
    out: Annotated[Path | None, typer.Option(help="Write the whole report to this JSON file")] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(help="Best-scored detections per image and class that count", min=1),
    ] = None,
    froc_iou: Annotated[float, typer.Option(help="Smallest IoU of a hit in FROC and counts", min=0.0, max=1.0)] = 0.3,
    bootstrap_samples: Annotated[int, typer.Option(help="Resamples of the patients; 0: no intervals", min=0)] = 1000,
) -> None:
    """Evaluate any COCO results file: AP per class, FROC, counts, as the asset evaluation does."""
    from pydantic import ValidationError

    from uveitis_assets.detection.configuration import EvaluationConfiguration
    from uveitis_assets.detection.evaluation.results_file import evaluate_results_file
    from uveitis_assets.storage.files import write_json

    try:
        configuration = EvaluationConfiguration(
            max_detections=max_detections, froc_iou=froc_iou, bootstrap_samples=bootstrap_samples
        )
        evaluation, report = evaluate_results_file(labels, results, configuration)
        if out is not None:
            write_json(out, report)
    except (OSError, ValueError, ValidationError) as error:
        fail(str(error))
    _print_evaluation(evaluation)


def _print_evaluation(evaluation: "Evaluation") -> None:
    from rich.table import Table

    def shown(value: float | None) -> str:
        return "none" if value is None else f"{value:.4f}"

    precision = evaluation.average_precision
    columns = {"AP 0.3": precision.iou_30, "AP 0.5": precision.iou_50, "AP 0.5:0.95": precision.iou_50_95}
    table = Table(title=f"{evaluation.n_images} images, {sum(evaluation.n_lesions.values())} lesions")
    for name in ("class", "lesions", *columns):
        table.add_column(name, justify="left" if name == "class" else "right")
    for category, n_lesions in evaluation.n_lesions.items():
        if n_lesions:
            values = (shown(column.per_class[category]) for column in columns.values())
            table.add_row(evaluation.categories[category], str(n_lesions), *values)
    table.add_row("mean", "", *(shown(column.mean) for column in columns.values()))
    console.print(table)
    rates = zip(evaluation.froc.rates, evaluation.froc.pooled.at_rates, strict=True)
    console.print("sensitivity at false positives per image: " + ", ".join(f"{r:g}: {shown(s)}" for r, s in rates))
    for message in evaluation.limits:
        console.print(f"warning: {message}", soft_wrap=True)
