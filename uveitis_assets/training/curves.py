"""Loss, AP and learning rate of a training over its epochs, as a PNG; drawn from the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uveitis_assets.imaging.figures import figure_png, new_figure

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#E69F00", "#009E73", "#9A9A9A"


def training_curves(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Three panels over the epochs: training loss, AP (the best epoch marked), learning rate.

    Rows of the earlier scripts, which have no AP, show their proxy under its own name. The same rows give the same
    bytes.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("expected at least one epoch to draw, found none; train first")
    figure = new_figure((9.6, 2.9))
    loss, precision, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    loss.plot(epochs, [row["train_loss"] for row in rows], color=_BLUE, marker=".", linewidth=1.4)
    loss.set(title="Training loss", xlabel="Epoch", ylim=(0, None))
    rate.plot(epochs, [row["lr"] for row in rows], color=_GREY, marker=".", linewidth=1.4)
    rate.set(title="Learning rate", xlabel="Epoch", ylim=(0, None))
    drawn = [
        (name, label, colour)
        for name, label, colour in (
            ("map_30", "AP at IoU 0.3", _ORANGE),
            ("map_50", "AP at IoU 0.5", _BLUE),
            ("map_50_95", "AP at IoU 0.5:0.95", _GREEN),
        )
        if any(row.get(name) is not None for row in rows)
    ] or [("val_mAP_proxy", "earlier proxy", _GREY)]
    for name, label, colour in drawn:
        judged = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        precision.plot(*zip(*judged, strict=True), color=colour, marker=".", linewidth=1.4, label=label)
    selected = [row for row in rows if row.get("map_selection") is not None]
    if selected:
        best = max(selected, key=lambda row: float(row["map_selection"]))
        precision.axvline(best["epoch"], color=_GREY, linestyle=":", linewidth=1, label=f"best: epoch {best['epoch']}")
    precision.set(title="Validation, per image", xlabel="Epoch", ylim=(0, 1.02))
    precision.legend(fontsize=7, frameon=False)
    for axes in (loss, precision, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure_png(figure)
