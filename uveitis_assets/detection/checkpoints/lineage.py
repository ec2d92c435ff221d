"""Lineage of a detector's weights: configuration, classes, training images and what they started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from uveitis_assets.detection.configuration import DetectorConfiguration

# Changes when weights of the same configuration mean something else.
DETECTOR_CODE_VERSION = "1"


def weights_lineage(
    configuration: DetectorConfiguration,
    *,
    categories: Mapping[int, str],
    data_fingerprint: str,
    metrics: Mapping[str, Any],
    parent: Mapping[str, str] | None,
    learned_images: Iterable[str],
    created_at: str,
    tiles: Mapping[str, Any] | None = None,
    mixed_precision: bool | None = None,
) -> dict[str, Any]:
    """What weights are and where they come from, for ``save_weights``.

    ``categories`` maps ids from 1 to names; ``data_fingerprint`` is that of the labelled split; ``parent`` is
    ``parent_of`` the file that the training started from; ``learned_images`` are the ids of the images that it and the
    training of its parent were shown, on which the weights must not be evaluated; ``created_at`` is given, so
    that two runs that compute the same can write the same. ``tiles`` is the ``TileGeometry`` of the learned tiles,
    ``mixed_precision`` says whether the validation that chose the epoch answered so; both are left out where they are
    not known.
    """
    known = {"tiles": tiles, "mixed_precision": mixed_precision}
    return {
        "configuration": configuration.model_dump(mode="json"),
        "categories": {str(number): name for number, name in categories.items()},
        "data_fingerprint": data_fingerprint,
        "code_version": DETECTOR_CODE_VERSION,
        "parent": None if parent is None else dict(parent),
        "metrics": dict(metrics),
        "learned_images": sorted(set(learned_images)),
        "created_at": created_at,
        **{name: value for name, value in known.items() if value is not None},
    }
