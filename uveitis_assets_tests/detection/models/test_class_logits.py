"""A network answers with the classes it was taught, in training and evaluation, whatever it has outputs for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from uveitis_assets.detection.models.class_logits import BoxPredictor, mask_untaught_classes
from uveitis_assets_tests.detection.models.test_detector import one_target, small_detector


def answers(taught: list[int] | None, **changes: Any) -> dict[str, torch.Tensor]:
    model = small_detector(box_score_threshold=0.0, n_categories=6, **changes).eval()
    if taught is not None:
        mask_untaught_classes(model, taught)
    torch.manual_seed(1)
    with torch.no_grad():
        (found,) = model([torch.rand(3, 64, 64)])
    return found


@pytest.mark.parametrize("head", ["axis_aligned", "oriented"])
def test_a_detector_answers_with_its_taught_classes_alone(head: str) -> None:
    assert set(answers(None, head=head)["labels"].tolist()) == {1, 2, 3, 4, 5, 6}
    assert set(answers([2, 5], head=head)["labels"].tolist()) == {2, 5}


def test_untaught_classes_take_no_place_among_a_tiles_best_detections() -> None:
    found = answers([4], detections_per_tile=10, box_nms_iou=1.0)
    assert found["labels"].tolist() == [4] * 10


def test_scores_are_those_of_a_network_that_has_the_taught_classes_only() -> None:
    predictor = BoxPredictor(8, 5)
    regions = torch.randn(40, 8)
    plain = predictor(regions)[0]
    mask_untaught_classes(predictor, [1, 3])
    masked = functional.softmax(predictor(regions)[0], dim=1)
    expected = functional.softmax(plain[:, [0, 1, 3]], dim=1)
    torch.testing.assert_close(masked[:, [0, 1, 3]], expected)
    assert masked[:, [2, 4]].eq(0).all()


def test_training_with_a_mask_has_finite_losses_and_teaches_untaught_classes_nothing() -> None:
    model = small_detector(n_categories=3)
    mask_untaught_classes(model, [2])
    losses = model([torch.rand(3, 64, 64)], one_target())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    gradient = model.roi_heads.box_predictor.cls_score.weight.grad
    assert gradient[[1, 3]].eq(0).all()
    assert gradient[[0, 2]].ne(0).any()


def test_a_detector_of_all_classes_is_untouched_and_files_keep_their_names() -> None:
    model = small_detector(n_categories=3)
    names = list(model.state_dict())
    before = answers(None)
    assert all(torch.equal(value, before[name]) for name, value in answers([1, 2, 3, 4, 5, 6]).items())
    mask_untaught_classes(model, [1])
    assert list(model.state_dict()) == names


def test_taught_classes_that_the_network_lacks_altogether_are_refused() -> None:
    with pytest.raises(ValueError, match=r"categories 1 to 3, found \[7\]"):
        mask_untaught_classes(small_detector(n_categories=3), [7])
