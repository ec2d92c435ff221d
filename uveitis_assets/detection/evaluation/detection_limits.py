"""How many detections count, and which limits cannot hold the lesions of an image or tile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.model_configuration import FEWEST_DETECTIONS, ModelConfiguration


def detections_that_count(configured: int | None, images: Iterable[LabelledImage]) -> int:
    """Best-scored detections per image and class that count in an evaluation of these images.

    ``configured``, or, where it is None, 400 or twice the most lesions of a class in an image: half of a perfect
    detector's list stays for false positives.
    """
    return configured or max(FEWEST_DETECTIONS, 2 * most_lesions_of_a_class(images))


def most_lesions_of_a_class(images: Iterable[LabelledImage]) -> int:
    """Largest number of lesions of one class in one image."""
    return max((max(Counter(image.truth.labels.tolist()).values(), default=0) for image in images), default=0)


def most_lesions_of_a_tile(images: Iterable[LabelledImage]) -> int:
    """Largest number of lesions, of all classes, in one tile."""
    return max((len(tile.truth) for image in images for tile in image.tiles), default=0)


def cut_by_max_detections(
    max_detections: int, images: Sequence[LabelledImage], detections: Sequence[Detections]
) -> list[str]:
    """Messages about images where a limit per image and class leaves out lesions or detections that score."""
    messages = []
    most = most_lesions_of_a_class(images)
    if most > max_detections:
        messages.append(
            f"evaluation.max_detections {max_detections}: an image has {most} lesions of one class, of which no more "
            "than that can be found; leave it null to follow the labels"
        )
    n_cut = sum(max(Counter(found.labels.tolist()).values(), default=0) > max_detections for found in detections)
    if n_cut:
        messages.append(
            f"evaluation.max_detections {max_detections}: {n_cut} of {len(images)} images have more detections of one "
            "class, the weakest of which do not count"
        )
    return messages


def answers_that_lack_room(model: ModelConfiguration, images: Iterable[LabelledImage]) -> list[str]:
    """Messages about limits of the network's answers that cannot hold the lesions of these images' tiles."""
    limits = {
        "model.detections_per_tile": (model.detections_per_tile or FEWEST_DETECTIONS, "found"),
        "model.rpn_post_nms_test": (model.rpn_post_nms_test, "proposed"),
    }
    return _too_low(limits, images)


def samples_that_lack_room(model: ModelConfiguration, images: Iterable[LabelledImage]) -> list[str]:
    """Messages about samples of a training step that cannot hold the lesions of these images' tiles."""
    anchors = int(model.rpn_anchors_per_tile * model.rpn_positive_share)
    regions = int(model.roi_regions_per_tile * model.roi_positive_share)
    limits = {
        "model.rpn_anchors_per_tile or rpn_positive_share": (anchors, "shown to the proposal head in a step"),
        "model.roi_regions_per_tile or roi_positive_share": (regions, "shown to the box head in a step"),
    }
    return _too_low(limits, images)


def _too_low(limits: Mapping[str, tuple[int, str]], images: Iterable[LabelledImage]) -> list[str]:
    most = most_lesions_of_a_tile(images)
    return [
        f"a tile has {most} lesions, of which {limit} can be {what}: raise {name}"
        for name, (limit, what) in limits.items()
        if most > limit
    ]
