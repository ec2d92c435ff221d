"""Figures of an evaluation as PNG bytes: precision-recall, FROC and confusion.

Curves stand in one panel per class: twenty lines in one panel cannot be distinguished. The same evaluation gives the
same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from uveitis_assets.detection.evaluation.average_precision import RECALLS, interpolated_precision
from uveitis_assets.detection.evaluation.bootstrap import Interval
from uveitis_assets.detection.evaluation.evaluate import Evaluation
from uveitis_assets.detection.evaluation.froc import FrocCurve
from uveitis_assets.imaging.figures import figure_png, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY = "#0072B2", "#9A9A9A"
_PANEL_INCHES = (2.5, 2.2)
_COLUMNS = 4


def precision_recall_figure(evaluation: Evaluation) -> bytes:
    """COCO's interpolated precision over recall at the selection IoU; the area below a curve is its AP.

    One panel per class with lesions, in the order of the categories, with AP, its 95 % interval and the number of
    lesions.
    """
    classes = _with_lesions(evaluation)
    configuration = evaluation.configuration
    title = f"Precision and recall at IoU {configuration.selection_iou:g}"
    if evaluation.map_selection is not None:
        interval = None if evaluation.intervals is None else evaluation.intervals.map_selection
        title += f": mean AP {_with_interval(evaluation.map_selection, interval)}"
    figure, panels = _panels(len(classes), f"{title}\n{_sample(evaluation)}", "Recall", "Precision")
    for axes, category in zip(panels, classes, strict=True):
        precision = interpolated_precision(evaluation.selection_hits[category])
        axes.fill_between(RECALLS, precision, step="post", color=_BLUE, alpha=0.15, linewidth=0)
        axes.plot(RECALLS, precision, drawstyle="steps-post", color=_BLUE, linewidth=1.4)
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        interval = None if evaluation.intervals is None else evaluation.intervals.ap_selection[category]
        ap = evaluation.average_precision.selection.per_class[category]
        assert ap is not None  # the class has lesions
        measured = f"AP {_with_interval(ap, interval)}, lesions: {evaluation.n_lesions[category]}"
        axes.set_title(f"{evaluation.categories[category]}\n{measured}", loc="left", fontsize=8)
    return figure_png(figure)


def froc_figure(evaluation: Evaluation) -> bytes:
    """Sensitivity over false positives per image, pooled and per class; bars are 95 % intervals.

    Operating points left of the axis are drawn at its left end; beyond the last one a curve goes on level.
    """
    froc, intervals = evaluation.froc, evaluation.intervals
    classes = _with_lesions(evaluation)
    title = f"FROC at IoU {evaluation.configuration.froc_iou:g}; bars: 95 % over patients\n{_sample(evaluation)}"
    n_panels = 1 + len(classes) if classes else 0
    figure, panels = _panels(n_panels, title, "False positives per image", "Sensitivity")
    if panels:
        bars = None if intervals is None else intervals.pooled_sensitivity
        _froc_panel(panels[0], froc.rates, froc.pooled, bars, "black")
        n_lesions = sum(evaluation.n_lesions.values())
        panels[0].set_title(f"all classes, one threshold\nlesions: {n_lesions}", loc="left", fontsize=8)
    for axes, category in zip(panels[1:], classes, strict=True):
        bars = None if intervals is None else intervals.sensitivity[category]
        _froc_panel(axes, froc.rates, froc.per_class[category], bars, _BLUE)
        name = evaluation.categories[category]
        axes.set_title(f"{name}\nlesions: {evaluation.n_lesions[category]}", loc="left", fontsize=8)
    return figure_png(figure)


def confusion_figure(evaluation: Evaluation) -> bytes:
    """Which class is found as which at the operating score.

    Counts, shaded by their share of the class's lesions.
    """
    matrix = evaluation.confusion.matrix
    shown = np.flatnonzero((matrix.sum(axis=0) + matrix.sum(axis=1) > 0)[:-1]).tolist()
    names = [evaluation.categories[evaluation.confusion.category_ids[index]] for index in shown]
    counts = matrix[np.ix_([*shown, -1], [*shown, -1])]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    share[-1] = 0.0  # detections without a lesion are shares of no class
    side = 2.6 + 0.42 * len(counts)
    figure = new_figure((side + 1.6, side))
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            shade = "white" if share[row, column] > 0.55 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=8)
    ticks = range(len(counts))
    axes.set_xticks(ticks, [*names, "not found"], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, [*names, "no lesion"])
    # What belongs to no class stands apart from the confusions between classes.
    axes.axhline(len(shown) - 0.5, color=_GREY, linewidth=1)
    axes.axvline(len(shown) - 0.5, color=_GREY, linewidth=1)
    axes.set(xlabel="Found as", ylabel="Labelled as")
    configuration = evaluation.configuration
    criterion = f"score from {configuration.operating_score:g}, IoU from {configuration.froc_iou:g}"
    figure.suptitle(f"Confusion of classes: {criterion}\n{_sample(evaluation)}", fontsize=10)
    figure.colorbar(image, ax=axes, label="Share of the class's lesions", shrink=0.7)
    return figure_png(figure)


def _froc_panel(
    axes: Axes, rates: Sequence[float], curve: FrocCurve, intervals: Sequence[Interval | None] | None, colour: str
) -> None:
    left, right = rates[0] / 2, rates[-1] * 1.5
    end = max([right, *curve.fp_per_image[-1:]])
    x = np.concatenate([[left], np.maximum(curve.fp_per_image, left), [end]])
    y = np.concatenate([[0.0], curve.sensitivity, [curve.sensitivity[-1] if len(curve.sensitivity) else 0.0]])
    axes.plot(x, y, drawstyle="steps-post", color=colour, linewidth=1.4)
    for rate, interval in zip(rates, intervals or (), strict=bool(intervals)):
        if interval is not None:
            axes.plot([rate, rate], [interval.low, interval.high], "_-", color=colour, linewidth=0.9, markersize=5)
    axes.set_xscale("log", base=2)
    axes.set(xlim=(left, right), ylim=(0, 1.03), yticks=(0, 0.5, 1))
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()


def _with_lesions(evaluation: Evaluation) -> list[int]:
    return [category for category, n in evaluation.n_lesions.items() if n > 0]


def _with_interval(value: float, interval: Interval | None) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _sample(evaluation: Evaluation) -> str:
    return f"images: {evaluation.n_images}, patients: {evaluation.n_patients}"


def _panels(n_panels: int, title: str, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    n_columns = min(_COLUMNS, max(2, n_panels))
    n_rows = max(1, -(-n_panels // n_columns))
    width, height = _PANEL_INCHES
    figure = new_figure((0.6 + width * n_columns, 0.9 + height * n_rows))
    panels: list[Axes] = []
    for index in range(n_panels):
        axes = figure.add_subplot(n_rows, n_columns, index + 1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        panels.append(axes)
    if not panels:
        figure.text(0.5, 0.5, "no labelled lesions", ha="center", va="center", color="#555555")
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    return figure, panels
