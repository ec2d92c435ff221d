"""Counts and confusion at the operating score, on cases small enough to count by hand."""

from __future__ import annotations

from hypothesis import given

from uveitis_assets.detection.evaluation.confusion import OperatingCounts, confusion_matrix, operating_counts
from uveitis_assets.detection.evaluation.matching import best_first
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets_tests.detection.evaluation.cases import drawn_cases, found, lesions, match_images

A, B, C = (0.0, 0.0, 10.0, 10.0), (30.0, 0.0, 40.0, 10.0), (60.0, 0.0, 70.0, 10.0)


def test_a_lesion_found_under_the_wrong_name_stands_in_its_cell() -> None:
    truths = [lesions((2, A), (2, B), (5, C)), lesions()]
    detections = [
        found((2, A, 0.9), (5, B, 0.8), (5, A, 0.7), (2, C, 0.05)),  # right, wrong name, second on A, below the score
        found((7, A, 0.6)),
    ]
    confusion = confusion_matrix(truths, detections, [7, 5, 2], score=0.1, iou_threshold=0.3)
    assert confusion.category_ids == (2, 5, 7)
    assert confusion.matrix.tolist() == [
        # found as 2, 5, 7, missed
        [1, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 1, 1, 0],
    ]


@given(drawn_cases())
def test_rows_add_up_to_lesions_and_columns_to_detections(case: tuple[list[GroundTruth], list[Detections]]) -> None:
    truths, detections = case[0], [best_first(item) for item in case[1]]
    matrix = confusion_matrix(truths, detections, [1, 2, 3], score=0.25, iou_threshold=0.3).matrix
    for index, category in enumerate((1, 2, 3)):
        assert matrix[index].sum() == sum((truth.labels == category).sum() for truth in truths)
        assert matrix[:, index].sum() == sum(
            ((item.labels == category) & (item.scores >= 0.25)).sum() for item in detections
        )
    assert matrix[-1, -1] == 0


def test_counts_hold_detections_from_the_operating_score_on() -> None:
    hits = match_images(
        [lesions((1, A), (1, B), (2, C))],
        [found((1, A, 0.9), (1, C, 0.7), (1, B, 0.69), (3, C, 0.7))],
        [1, 2, 3, 4],
        iou_threshold=0.3,
        max_detections=400,
    )
    # 0.7 is below itself once rounded to float32 and widened again; it has to count.
    counts = operating_counts(hits, 0.7)
    assert counts == {
        1: OperatingCounts(tp=1, fp=1, fn=1),
        2: OperatingCounts(tp=0, fp=0, fn=1),
        3: OperatingCounts(tp=0, fp=1, fn=0),
        4: OperatingCounts(tp=0, fp=0, fn=0),
    }
    assert (counts[1].precision, counts[1].recall) == (0.5, 0.5)
    assert (counts[2].precision, counts[2].recall) == (None, 0.0)
    assert (counts[3].precision, counts[3].recall) == (0.0, None)
    assert (counts[4].precision, counts[4].recall) == (None, None)
