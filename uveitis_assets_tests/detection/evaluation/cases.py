"""Images, lesions and detections for the evaluation's tests: random ones, and ones that hypothesis draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.evaluation.matching import ScoredHits, match_images_at
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets.imaging.geometry import ImageFrames

FRAMES = ImageFrames((1024, 1024), (0, 0, 1024, 1024), 1024, (0, 0), 1024, "global", ())

Row = tuple[int, tuple[float, float, float, float]]
ScoredRow = tuple[int, tuple[float, float, float, float], float]


def lesions(*rows: Row) -> GroundTruth:
    """Ground truth from (label, box)."""
    return GroundTruth(
        np.asarray([box for _, box in rows], np.float32).reshape(-1, 4),
        np.asarray([label for label, _ in rows], np.int64),
        np.full((len(rows), 4, 2), np.nan, np.float32),
        np.ones(len(rows), np.float32),
    )


def found(*rows: ScoredRow) -> Detections:
    """Detections from (label, box, score)."""
    return Detections(
        np.asarray([box for _, box, _ in rows], np.float32).reshape(-1, 4),
        np.asarray([score for _, _, score in rows], np.float32),
        np.asarray([label for label, _, _ in rows], np.int64),
    )


def match_images(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    category_ids: Iterable[int],
    *,
    iou_threshold: float,
    **options: Any,
) -> dict[int, ScoredHits]:
    """Hits at one threshold, by class."""
    (hits,) = match_images_at(truths, detections, category_ids, iou_thresholds=(iou_threshold,), **options)
    return hits


def labelled(truths: Sequence[GroundTruth], patients: Sequence[str] | None = None) -> list[LabelledImage]:
    """Images named i00000, ...; each of a patient of its own unless given."""
    names = patients or [f"p{index}" for index in range(len(truths))]
    return [
        LabelledImage(f"ds::i{index:05d}", f"ds__i{index:05d}", patient, FRAMES, truth, ())
        for index, (truth, patient) in enumerate(zip(truths, names, strict=True))
    ]


def random_case(
    seed: int, *, n_images: int, n_classes: int, n_lesions: int, n_detections: int, score_step: float = 0.0
) -> tuple[list[GroundTruth], list[Detections]]:
    """Up to so many lesions and detections per image; many detections lie near lesions, some twice on one.

    ``score_step`` > 0 rounds scores, so that many tie.
    """
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(n_images):
        corner = rng.uniform(0, 300, (rng.integers(0, n_lesions + 1), 2))
        boxes = np.concatenate([corner, corner + rng.uniform(4, 70, corner.shape)], axis=1)
        labels = rng.integers(1, n_classes + 1, len(boxes))
        truths.append(lesions(*zip(labels.tolist(), map(tuple, boxes.tolist()), strict=True)))
        rows: list[ScoredRow] = []
        for _ in range(rng.integers(0, n_detections + 1)):
            score = float(rng.uniform(0.01, 1))
            score = round(score / score_step) * score_step if score_step else score
            if len(boxes) and rng.random() < 0.6:
                near = rng.integers(len(boxes))
                box = boxes[near] + rng.normal(0, 4, 4)
                label = int(labels[near]) if rng.random() < 0.8 else int(rng.integers(1, n_classes + 1))
            else:
                start = rng.uniform(0, 300, 2)
                box, label = np.concatenate([start, start + rng.uniform(4, 70, 2)]), int(rng.integers(1, n_classes + 1))
            box[2:] = np.maximum(box[2:], box[:2] + 1)
            rows.append((label, tuple(box.tolist()), score))
        detections.append(found(*rows))
    return truths, detections


@st.composite
def drawn_cases(draw: st.DrawFn) -> tuple[list[GroundTruth], list[Detections]]:
    """A few images with few distinct boxes and scores: equal boxes, ties, empty images and absent classes abound."""
    coordinate = st.sampled_from([0.0, 4.0, 8.0, 10.0, 40.0])
    side = st.sampled_from([4.0, 8.0, 10.0, 33.0])
    box = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), coordinate, coordinate, side, side)
    label = st.integers(1, 3)
    truth = st.lists(st.tuples(label, box), max_size=4).map(lambda rows: lesions(*rows))
    score = st.sampled_from([0.125, 0.25, 0.5, 0.75])
    detection = st.lists(st.tuples(label, box, score), max_size=6).map(lambda rows: found(*rows))
    cases = draw(st.lists(st.tuples(truth, detection), min_size=1, max_size=4))
    return [case[0] for case in cases], [case[1] for case in cases]
