"""The normalized Wasserstein distance against the distance of the distributions themselves."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torchvision.models.detection.roi_heads import RoIHeads

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.box_similarity import overlaps, wasserstein_similarity
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.region_matching import MatchingRoIHeads
from uveitis_assets_tests.detection.models.test_detector import one_target, small_detector


def by_covariances(one: np.ndarray, other: np.ndarray, constant: float) -> float:
    """exp(-W2 / constant) by the general formula for two normal distributions, with matrix square roots."""

    def distribution(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = box[2:] - box[:2]
        return (box[:2] + box[2:]) / 2, np.diag(size**2 / 4)

    (mean, cov), (other_mean, other_cov) = distribution(one), distribution(other)
    root = scipy.linalg.sqrtm(cov)
    cross = scipy.linalg.sqrtm(root @ other_cov @ root)
    squared = ((mean - other_mean) ** 2).sum() + np.trace(cov + other_cov - 2 * cross.real)
    return float(np.exp(-np.sqrt(max(squared, 0.0)) / constant))


def test_it_is_the_distance_of_the_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 700, (40, 2))
    boxes = np.hstack([low, low + rng.uniform(1, 60, (40, 2))])
    own, other = boxes[:15], boxes[15:]
    found = wasserstein_similarity(torch.tensor(own), torch.tensor(other), constant=12.7).numpy()
    right = [[by_covariances(a, b, 12.7) for b in other] for a in own]
    np.testing.assert_allclose(found, right, atol=1e-5)


def test_equal_boxes_agree_fully_and_tiny_ones_apart_still_agree_a_little() -> None:
    box = torch.tensor([[700.0, 700.0, 704.0, 704.0]])
    beside = box + torch.tensor([5.0, 0.0, 5.0, 0.0])
    assert float(wasserstein_similarity(box, box, constant=12.7)) == 1.0
    assert float(overlaps(box, beside)) == 0.0
    assert float(wasserstein_similarity(box, beside, constant=12.7)) == pytest.approx(np.exp(-5 / 12.7))


@pytest.mark.parametrize("head", ["axis_aligned", "oriented"])
@pytest.mark.parametrize("kind", ["iou", "nwd"])
def test_a_detector_assigns_by_what_its_configuration_names(kind: str, head: str) -> None:
    configuration = ModelConfiguration(
        backbone="resnet50_fpn",
        head=head,
        rpn_similarity=kind,
        roi_similarity=kind,
        roi_foreground_iou=0.6,
        roi_background_iou=0.5,
    )
    model = build_detector(configuration)
    box = torch.tensor([[10.0, 10.0, 14.0, 14.0]])
    beside = box + 5
    assert (float(model.rpn.box_similarity(box, beside)) > 0) == (kind == "nwd")
    # exp(-W / 12.7) of the moved boxes: 0.89, 0.57 and 0.11; their IoU: 0.39, 0 and 0.
    proposals = torch.cat([box + torch.tensor([1.0]), box + 5, box + 20])
    rows, labels = model.roi_heads.assign_targets_to_proposals([proposals], [box], [torch.tensor([3])])
    assert rows[0].tolist() == [0, 0, 0]
    assert labels[0].tolist() == ([3, -1, 0] if kind == "nwd" else [0, 0, 0])


def test_regions_are_matched_by_iou_as_torchvision_does_it() -> None:
    layers = (None, None, None)
    settings = {
        "fg_iou_thresh": 0.5,
        "bg_iou_thresh": 0.3,
        "batch_size_per_image": 64,
        "positive_fraction": 0.25,
        "bbox_reg_weights": None,
        "score_thresh": 0.1,
        "nms_thresh": 0.5,
        "detections_per_img": 100,
    }
    generator = torch.Generator().manual_seed(0)

    def boxes(number: int) -> torch.Tensor:
        low = 60 * torch.rand(number, 2, generator=generator)
        return torch.cat([low, low + 5 + 30 * torch.rand(number, 2, generator=generator)], 1)

    proposals, lesions = [boxes(200), boxes(50)], [boxes(12), torch.zeros(0, 4)]
    labels = [torch.randint(1, 5, (12,), generator=generator), torch.zeros(0, dtype=torch.int64)]
    given = (proposals, lesions, labels)
    right = RoIHeads(*layers, **settings).assign_targets_to_proposals(*given)
    found = MatchingRoIHeads(*layers, **settings).assign_targets_to_proposals(*given)
    assert {-1, 0} < set(right[1][0].tolist())
    for one, other in zip(found, right, strict=True):
        for of_image, expected in zip(one, other, strict=True):
            assert of_image.dtype == expected.dtype
            assert of_image.tolist() == expected.tolist()


def test_a_tiny_lesion_off_every_anchor_gets_more_positive_anchors() -> None:
    """A lesion of 3 px between the anchors' centres has IoU 0.4 with none of them."""
    target = one_target()[0]
    target["boxes"] = torch.tensor([[16.5, 16.5, 19.5, 19.5]])
    counts = {}
    for kind in ("iou", "nwd"):
        model = small_detector(rpn_similarity=kind, rpn_foreground_iou=0.5, rpn_background_iou=0.3)
        grid = torch.arange(0, 64, 4.0)
        centres = torch.cartesian_prod(grid, grid)
        anchors = torch.cat([centres - 3, centres + 3], 1)
        labels, _ = model.rpn.assign_targets_to_anchors([anchors], [target])
        counts[kind] = int((labels[0] == 1).sum())
    assert counts["nwd"] > counts["iou"] >= 1
