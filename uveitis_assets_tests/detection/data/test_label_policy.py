"""A detector sees the lesions of its classes, and every image."""

from pathlib import Path

import numpy as np

from uveitis_assets.detection.data.label_policy import with_classes
from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledSplit, LabelledTile
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import ImageFrames, Tile

FRAMES = ImageFrames((64, 64), (0, 0, 64, 64), 64, (0, 0), 64, "global", (Tile("tile_000", 0, 0, 64, 64),))


def truth(*labels: int) -> GroundTruth:
    n = len(labels)
    boxes = np.array([[i, i, i + 5, i + 5] for i in range(n)], np.float32).reshape(n, 4)
    return GroundTruth(
        boxes, np.array(labels, np.int64), np.full((n, 4, 2), np.nan, np.float32), np.ones(n, np.float32)
    )


def split(*images: GroundTruth) -> LabelledSplit:
    return LabelledSplit(
        "uwf700",
        0,
        "train",
        tuple(
            LabelledImage(
                f"uwf700::{i}", f"uwf700__{i}", f"p{i}", FRAMES, t, (LabelledTile("tile_000", Path("x"), 64, 64, t),)
            )
            for i, t in enumerate(images)
        ),
        {1: "foyer", 4: "vascularite", 5: "hemorragie"},
        "0123",
    )


def test_lesions_of_other_classes_leave_images_and_tiles_and_the_images_stay() -> None:
    kept = with_classes(split(truth(1, 4, 5, 4), truth(5)), {4: "vascularite", 9: "absent"})
    assert [image.truth.labels.tolist() for image in kept.images] == [[4, 4], []]
    assert [image.tiles[0].truth.boxes[:, 0].tolist() for image in kept.images] == [[1, 3], []]
    assert kept.categories == {4: "vascularite"}


def test_the_fingerprint_tells_policies_apart_and_all_classes_change_nothing() -> None:
    whole = split(truth(1, 4, 5))
    assert with_classes(whole, {1: "a", 4: "b", 5: "c", 6: "d"}) is whole
    prints = {with_classes(whole, {key: ""}).fingerprint for key in (1, 4, 5)}
    assert len(prints | {whole.fingerprint}) == 4
