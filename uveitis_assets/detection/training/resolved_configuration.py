"""A detector's configuration with what labels, backbone and first weights decide as numbers.

It is what a training's identity, config.yaml and lineage hold, so that weights are rebuilt and evaluated as they were
trained, whatever the defaults become.
"""

from __future__ import annotations

from uveitis_assets.detection.checkpoints.loading import stored_input_statistics
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.evaluation.detection_limits import detections_that_count, most_lesions_of_a_tile
from uveitis_assets.detection.model_configuration import FEWEST_DETECTIONS, IMAGENET_MEAN, IMAGENET_STD
from uveitis_assets.detection.models.backbones import input_statistics
from uveitis_assets.detection.training.initial_weights import initial_weights_file
from uveitis_assets.storage.store import ArtefactStore


def resolved_configuration(
    configuration: DetectorConfiguration, store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> DetectorConfiguration:
    """The configuration with limits on detections and the input's statistics as numbers.

    Args:
        configuration: as in defs.yaml; what it names stays.
        store: where initial weights are.
        train: images to learn from.
        val: images that choose the best checkpoint.

    Raises:
        FileNotFoundError: the file of the first weights does not exist.
    """
    model, evaluation = configuration.model, configuration.evaluation
    images = [*train.images, *val.images]
    per_tile = model.detections_per_tile or max(FEWEST_DETECTIONS, 2 * most_lesions_of_a_tile(images))
    mean, std = _statistics(configuration, store)
    return configuration.model_copy(
        update={
            "model": model.model_copy(update={"detections_per_tile": per_tile, "input_mean": mean, "input_std": std}),
            "evaluation": evaluation.model_copy(
                update={"max_detections": detections_that_count(evaluation.max_detections, val.images)}
            ),
        }
    )


def _statistics(
    configuration: DetectorConfiguration, store: ArtefactStore
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    model = configuration.model
    path = None if model.input_mean is not None else initial_weights_file(store, configuration.initialise)
    if path is not None:
        of_detector = stored_input_statistics(path)
        if of_detector is not None:
            return of_detector
        if configuration.initialise.checkpoint is not None:
            # An earlier .pth.
            return IMAGENET_MEAN, IMAGENET_STD
    return input_statistics(model)
