"""Locates a fold's finished weights and verifies digest, classes and training images.

A training replaces its best weights while it goes on, so weights are used only once it is finished: while a fold is
trained again, those of the run before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from uveitis_assets.detection.checkpoints.loading import load_trained_detector
from uveitis_assets.detection.data.tile_geometry import TileGeometry
from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.messages import enumeration
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import Amp, answers_in_half_precision
from uveitis_assets.training.run_folder import RunFolder, ended_with, is_unfinished
from uveitis_assets.training.run_replacement import current_run
from uveitis_assets.training.weights_files import file_digest, read_lineage

_SHOWN = 3


class TrainingNotUsableError(ValueError):
    """Weights are there, but must not be used as they are; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class FoldWeights:
    """Finished weights of one fold.

    ``digest`` is that of the file; ``categories`` maps the ids that were learned to their names at that time;
    ``learned_images`` are the ids of all images that it, or any detector it started from, was trained on. The last two
    are empty where the file does not hold them. ``tiles`` is the geometry of the learned tiles, None in files of
    earlier versions; ``amp`` and ``mixed_precision`` tell in which precision its validation answered;
    ``input_size`` is the side of the network's input, px.
    """

    name: str
    path: Path
    digest: str
    categories: Mapping[int, str]
    learned_images: frozenset[str]
    input_size: int
    tiles: TileGeometry | None = None
    amp: Amp = "auto"
    mixed_precision: bool | None = None

    def answers_in_half_precision(self, device: str) -> bool:
        """Whether it answers in mixed precision on a device, as in the validation that chose its epoch.

        Files of earlier versions tell the training's ``amp`` only: by the rule for that. On the CPU answers are float32
        in any case, as everywhere.
        """
        by_rule = answers_in_half_precision(self.amp, device)
        return by_rule if self.mixed_precision is None else self.mixed_precision and device.startswith("cuda")

    def load(self) -> nn.Module:
        """The detector in evaluation mode on the CPU.

        Raises:
            TrainingNotUsableError: the file was replaced since its digest was taken.
        """
        try:
            model, _ = load_trained_detector(self.path)
        except FileNotFoundError as error:
            raise self._replaced() from error
        self.check_unchanged()
        return model

    def check_unchanged(self) -> None:
        """Refuse what was computed with the weights before they were replaced.

        Raises:
            TrainingNotUsableError: the file was replaced since its digest was taken.
        """
        try:
            unchanged = file_digest(self.path) == self.digest
        except FileNotFoundError as error:
            raise self._replaced() from error
        if not unchanged:
            raise self._replaced()

    def _replaced(self) -> TrainingNotUsableError:
        return TrainingNotUsableError(f"{self.path}: {self.name} was replaced while it was in use; run this again")

    def check_categories(self, names: Mapping[int, str]) -> None:
        """Refuse weights whose ids mean something else now.

        Raises:
            TrainingNotUsableError: an id has another name in ``names``, or none.
        """
        other = [key for key, name in sorted(self.categories.items()) if names.get(key) != name]
        if other:
            found = ", ".join(f"{key} {self.categories[key]}" for key in other[:_SHOWN])
            expected = ", ".join(f"{key} {names.get(key, 'unknown')}" for key in other[:_SHOWN])
            raise TrainingNotUsableError(
                f"{self.path}: learned {found}, which is now {expected}; the classes have changed: materialize "
                f"{self.name} again"
            )

    def check_never_learned(self, image_ids: Collection[str], what: str) -> None:
        """Refuse to evaluate weights on images that they learned.

        Args:
            image_ids: images to evaluate on.
            what: names them in the message, e.g. ``val of fold0``.

        Raises:
            TrainingNotUsableError: some of the images were learned.
        """
        learned = sorted(self.learned_images.intersection(image_ids))
        if learned:
            raise TrainingNotUsableError(
                f"{self.path}: {len(learned)} of {len(image_ids)} images of {what} were learned, by it or by what it "
                f"started from: {enumeration(learned, _SHOWN)}; AP there is "
                "meaningless. Were splits assigned again? Train on the current ones, from weights that never saw these "
                "images"
            )


def fold_weights(store: ArtefactStore, experiment: str, fold: int) -> FoldWeights:
    """The finished weights of a detector lane's fold.

    Raises:
        FileNotFoundError: there are none; names what to materialize.
        TrainingNotUsableError: the training is not finished, or ended with other weights.
    """
    name = f"{experiment}/checkpoint of fold{fold}"
    folder = current_run(RunFolder(store.run_folder(experiment, fold)))
    if is_unfinished(folder):
        raise TrainingNotUsableError(
            f"{folder.path}: {name} is being trained or was stopped on the way; materialize {name} to its end first"
        )
    if not folder.best_weights.is_file():
        raise FileNotFoundError(f"{folder.best_weights}: found no checkpoint; materialize {name} first")
    lineage = read_lineage(folder.best_weights)
    if problem := weights_problem(folder, name):
        raise TrainingNotUsableError(problem)
    configuration = lineage.get("configuration", {})
    return FoldWeights(
        name=name,
        path=folder.best_weights,
        digest=file_digest(folder.best_weights),
        categories={int(number): str(text) for number, text in lineage.get("categories", {}).items()},
        learned_images=frozenset(lineage.get("learned_images", ())),
        input_size=int(configuration.get("model", {}).get("input_size", ModelConfiguration().input_size)),
        tiles=learned_tiles(lineage),
        amp=configuration.get("training", {}).get("amp", "auto"),
        mixed_precision=lineage.get("mixed_precision"),
    )


def learned_tiles(lineage: Mapping[str, Any]) -> TileGeometry | None:
    """Geometry of the tiles that weights learned; None where their lineage does not say.

    Those of earlier versions do not.
    """
    return None if "tiles" not in lineage else TileGeometry.from_plain(lineage["tiles"])


def weights_problem(folder: RunFolder, name: str) -> str | None:
    """Message for best weights that are not those that their run ended with; None when they are."""
    if ended_with(folder, folder.best_weights):
        return None
    return (
        f"{folder.best_weights}: expected the weights that {name} ended with ({folder.run_file.name}), found others or "
        f"damaged ones. To use them as they are, put them into the run folder of a lane of their own; materialize "
        f"{name} to train it anew, which moves these files to {folder.replaced_folder.name}/"
    )
