"""First weights of a training: those of a file that the configuration names, or random ones."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from uveitis_assets.detection.checkpoints.loading import load_backbone_weights, load_detector_weights
from uveitis_assets.detection.configuration import DetectorConfiguration, InitialisationConfiguration
from uveitis_assets.detection.models.freezing import ever_frozen
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.weights_files import parent_of, read_lineage
from uveitis_assets.training.weights_loading import LoadReport


def initial_weights_file(store: ArtefactStore, initialise: InitialisationConfiguration) -> Path | None:
    """The file that the first weights are read from; None: they are random.

    Raises:
        ValueError: an asset is named instead of a file.
        FileNotFoundError: the file does not exist.
    """
    name = initialise.checkpoint or initialise.backbone_weights
    if name is None:
        if initialise.experiment is not None:
            raise ValueError(
                f"initialise.experiment: expected the file of {initialise.experiment}'s best weights as "
                "initialise.checkpoint; resolve it before the training"
            )
        return None
    path = store.root / name
    if not path.is_file():
        raise FileNotFoundError(f"initialise: {path}: expected a file with weights, found none; put it there")
    return path


def parent_weights(store: ArtefactStore, initialise: InitialisationConfiguration) -> dict[str, str] | None:
    """Name and digest of the file that a training starts from, for its identity and lineage."""
    path = initial_weights_file(store, initialise)
    return None if path is None else parent_of(path)


def images_learned_before(store: ArtefactStore, initialise: InitialisationConfiguration) -> frozenset[str]:
    """Ids of the images that the first weights learned with labels; empty where their file names none."""
    path = initial_weights_file(store, initialise)
    return frozenset() if path is None else frozenset(read_lineage(path).get("learned_images", ()))


def check_frozen_weights(configuration: DetectorConfiguration) -> None:
    """Refuse to freeze a backbone that nothing has been loaded into: what it gives would stay noise.

    Raises:
        ValueError: ``training.freeze_blocks`` freezes random weights in some epoch, which nothing allows.
    """
    first, options = configuration.initialise, configuration.training
    if first.checkpoint or first.backbone_weights or first.frozen_random_weights or not ever_frozen(options):
        return
    raise ValueError(
        f"training.freeze_blocks: expected 0 where the first weights are random, found {options.freeze_blocks} for "
        f"{configuration.model.backbone}: frozen blocks stay as they are, and these know nothing. Name a file or lane "
        "with weights under initialise, or set training.freeze_blocks to 0; initialise.frozen_random_weights: true "
        "allows it"
    )


def load_initial_weights(
    model: nn.Module, store: ArtefactStore, initialise: InitialisationConfiguration
) -> LoadReport | None:
    """Loads the configured file into the model; returns what was matched.

    None when no file is configured, so that the weights stay random.

    Raises:
        WeightsMismatchError: the file provides too little of the model.
    """
    path = initial_weights_file(store, initialise)
    if path is None:
        return None
    if initialise.checkpoint is not None:
        return load_detector_weights(model, path, mode=initialise.mode, min_matched=initialise.min_matched)
    return load_backbone_weights(model, path, min_matched=initialise.min_matched)
