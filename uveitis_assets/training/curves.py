"""Draws loss, metrics and learning rate over the epochs of a training as a PNG.

The figures are read from the rows of metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uveitis_assets.imaging.figures import figure_png, new_figure

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#E69F00", "#009E73", "#9A9A9A"
_COLOURS = (_ORANGE, _BLUE, _GREEN)


def training_curves(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    metrics: Mapping[str, str],
    selection_metric: str,
) -> bytes:
    """Three panels over the epochs: training loss, metrics from 0 to 1, learning rate.

    The best epoch is marked among the metrics. The same rows give the same bytes.

    Args:
        rows: of metrics.jsonl.
        title: of the panel of metrics.
        metrics: labels of at most three metrics by their names in the rows.
        selection_metric: name of the metric whose highest value is the best epoch.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("expected at least one epoch to draw, found none; train first")
    figure = new_figure((9.6, 2.9))
    loss, quality, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    loss.plot(epochs, [row["train_loss"] for row in rows], color=_BLUE, marker=".", linewidth=1.4)
    loss.set(title="Training loss", xlabel="Epoch", ylim=(0, None))
    rate.plot(epochs, [row["lr"] for row in rows], color=_GREY, marker=".", linewidth=1.4)
    rate.set(title="Learning rate", xlabel="Epoch", ylim=(0, None))
    drawn = [
        (name, label, colour)
        for (name, label), colour in zip(metrics.items(), _COLOURS, strict=False)
        if any(row.get(name) is not None for row in rows)
    ]
    for name, label, colour in drawn:
        evaluated = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        quality.plot(*zip(*evaluated, strict=True), color=colour, marker=".", linewidth=1.4, label=label)
    selected = [row for row in rows if row.get(selection_metric) is not None]
    if selected:
        best = max(selected, key=lambda row: float(row[selection_metric]))
        quality.axvline(best["epoch"], color=_GREY, linestyle=":", linewidth=1, label=f"best: epoch {best['epoch']}")
    quality.set(title=title, xlabel="Epoch", ylim=(0, 1.02))
    if drawn:
        quality.legend(fontsize=7, frameon=False)
    for axes in (loss, quality, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure_png(figure)
