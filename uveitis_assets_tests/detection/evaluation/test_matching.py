"""Greedy matching: who takes what, whatever the order, with boxes or with any other overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from uveitis_assets.detection.evaluation.matching import (
    best_first,
    box_overlap,
    in_fixed_order,
    match_greedily,
    pool,
)
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets_tests.detection.evaluation.cases import drawn_cases, found, lesions, match_images, random_case

matrices = st.integers(0, 6).flatmap(
    lambda columns: st.lists(
        st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.7, 1.0]), min_size=columns, max_size=columns), max_size=6
    ).map(lambda rows: np.asarray(rows, np.float64).reshape(len(rows), columns))
)


def by_the_rule(overlap: NDArray[np.float64], threshold: float) -> list[int]:
    """The greedy rule spelt out cell by cell."""
    free = set(range(overlap.shape[1]))
    taken = []
    for row in overlap:
        candidates = [column for column in free if row[column] >= threshold]
        best = max(candidates, key=lambda column: (row[column], column), default=-1)
        free.discard(best)
        taken.append(best)
    return taken


@given(matrices, st.sampled_from([0.2, 0.3, 0.5, 1.0]))
def test_detections_take_the_best_free_lesion_in_turn(overlap: NDArray[np.float64], threshold: float) -> None:
    assert match_greedily(overlap, threshold).tolist() == by_the_rule(overlap, threshold)


@given(matrices, st.integers(0, 6))
def test_lower_scored_detections_do_not_change_what_the_better_ones_hit(
    overlap: NDArray[np.float64], n_best: int
) -> None:
    assert (match_greedily(overlap[:n_best], 0.3) == match_greedily(overlap, 0.3)[:n_best]).all()


def test_an_overlap_equal_to_the_threshold_is_a_hit() -> None:
    assert match_greedily(np.asarray([[0.5]]), 0.5).tolist() == [0]
    assert match_greedily(np.asarray([[1.0]]), 1.0).tolist() == [0]
    assert match_greedily(np.asarray([[0.49]]), 0.5).tolist() == [-1]


def test_box_overlap_equals_torchvision() -> None:
    truths, detections = random_case(3, n_images=1, n_classes=1, n_lesions=40, n_detections=60)
    expected = torchvision.ops.box_iou(
        torch.from_numpy(detections[0].boxes).double(), torch.from_numpy(truths[0].boxes).double()
    )
    assert box_overlap(detections[0], truths[0]) == pytest.approx(expected.numpy(), abs=1e-12)


def test_boxes_without_area_overlap_nothing() -> None:
    flat = (5.0, 5.0, 5.0, 9.0)
    assert box_overlap(found((1, flat, 0.5)), lesions((1, flat), (1, (0, 0, 10, 10)))).tolist() == [[0.0, 0.0]]


def test_only_the_best_detections_per_image_and_class_count() -> None:
    detections = [found(*[(1, (0.0, 0.0, 9.0, 9.0), score) for score in (0.9, 0.8, 0.7)], (2, (0, 0, 9, 9), 0.1))]
    hits = match_images([lesions((1, (0, 0, 9, 9)))], detections, [1, 2], iou_threshold=0.5, max_detections=2)
    assert hits[1].scores == pytest.approx([0.9, 0.8])
    assert hits[1].hits.tolist() == [True, False]
    assert hits[2].hits.tolist() == [False]


def test_classes_that_were_not_asked_for_are_left_out() -> None:
    box = (0.0, 0.0, 9.0, 9.0)
    truths, detections = [lesions((1, box), (2, box))], [found((2, box, 0.9), (3, box, 0.8), (1, box, 0.7))]
    hits = match_images(truths, detections, [1], iou_threshold=0.5, max_detections=9)
    assert list(hits) == [1]
    assert (hits[1].scores.tolist(), hits[1].n_lesions) == (pytest.approx([0.7]), 1)


def test_hits_of_all_classes_pooled_stand_best_first_with_all_lesions() -> None:
    truths, detections = random_case(5, n_images=6, n_classes=3, n_lesions=6, n_detections=9)
    detections = [best_first(item) for item in detections]
    hits = match_images(truths, detections, [1, 2, 3], iou_threshold=0.5, max_detections=400)
    pooled = pool(hits.values())
    assert (np.diff(pooled.scores) <= 0).all()
    assert len(pooled.scores) == sum(map(len, detections))
    assert pooled.lesions.tolist() == [len(truth) for truth in truths]
    assert pooled.hits.sum() == sum(part.hits.sum() for part in hits.values())


def test_any_overlap_matrix_can_be_matched() -> None:
    """An overlap that looks at centres only, as a stand-in for rotated boxes."""

    def centres(detections: Detections, truth: GroundTruth) -> NDArray[np.float64]:
        difference = detections.boxes[:, None].reshape(-1, 1, 2, 2).mean(2) - truth.boxes.reshape(1, -1, 2, 2).mean(2)
        return (np.abs(difference).max(-1) < 1).astype(np.float64)

    truths, detections = [lesions((1, (0, 0, 40, 40)))], [found((1, (18, 18, 22, 22), 0.5))]
    hits = match_images(truths, detections, [1], iou_threshold=0.5, max_detections=9, overlap=centres)
    assert hits[1].hits.tolist() == [True]
    assert not match_images(truths, detections, [1], iou_threshold=0.5, max_detections=9)[1].hits.any()


@given(drawn_cases(), st.randoms(use_true_random=False))
def test_rows_in_any_order_are_brought_into_one_order(case: object, random: object) -> None:
    truths, detections = case  # type: ignore[misc]
    for truth, item in zip(truths, detections, strict=True):
        rows, columns = list(range(len(item))), list(range(len(truth)))
        random.shuffle(rows)  # type: ignore[attr-defined]
        random.shuffle(columns)  # type: ignore[attr-defined]
        for name in ("boxes", "scores", "labels"):
            shuffled = best_first(item.select(np.asarray(rows, np.int64)))
            assert np.array_equal(getattr(shuffled, name), getattr(best_first(item), name))
            moved = GroundTruth(*(value[columns] for value in (truth.boxes, truth.labels, truth.corners, truth.scores)))
            assert np.array_equal(getattr(in_fixed_order(moved), name), getattr(in_fixed_order(truth), name))
