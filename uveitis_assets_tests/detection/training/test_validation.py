"""An evaluation during training shows tiles without augmentation, and counts the lesions of its own images alone."""

from __future__ import annotations

import cv2
import pytest
import torch

from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.sampling import overfit_split
from uveitis_assets.detection.data.tile_dataset import TileFiles
from uveitis_assets.detection.evaluation.evaluate import Evaluation
from uveitis_assets.detection.training.validation import validate
from uveitis_assets_tests.detection.squares import SIDE, tiny


class SquareFinder(torch.nn.Module):
    """Finds the one square in each half of a tile of ``squares_split``; keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[torch.Tensor] = []

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        self.shown += images
        return [self._found(image) for image in images]

    def _found(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        boxes, labels = [], []
        for left in (0, SIDE // 2):
            half = image[:, :, left : left + SIDE // 2]
            for label in (1, 2):
                rows, columns = torch.nonzero(half[label - 1] > 0.5, as_tuple=True)
                if len(rows):
                    edges = (columns.min() + left, rows.min(), columns.max() + 1 + left, rows.max() + 1)
                    boxes.append([float(edge) for edge in edges])
                    labels.append(label)
        return {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "scores": torch.full((len(boxes),), 0.9),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }


def evaluate(model: torch.nn.Module, split: LabelledSplit) -> Evaluation:
    augmented = tiny(augmentation={"brightness": 0.4, "horizontal_flip": 1.0})
    cpu = torch.device("cpu")
    return validate(model, split, augmented, pixels=TileFiles(), device=cpu, amp=False, intervals=False)


def test_a_faultless_detector_is_faultless_on_any_subset_of_the_images(train: LabelledSplit) -> None:
    for n_images in (1, 3, 4):
        evaluation = evaluate(SquareFinder(), overfit_split(train, n_images))
        assert evaluation.map_50 == pytest.approx(1.0)


def test_tiles_are_evaluated_as_they_are_whatever_the_augmentation(val: LabelledSplit) -> None:
    model = SquareFinder()
    evaluate(model, val)
    files = [tile.file for image in val.images for tile in image.tiles]
    assert len(model.shown) == len(files)
    for shown, file in zip(model.shown, files, strict=True):
        pixels = torch.from_numpy(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
        assert torch.equal((shown * 255).round().to(torch.uint8), pixels)
