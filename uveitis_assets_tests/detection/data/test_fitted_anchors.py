"""Anchor sides fitted to boxes: against scipy's k-means, and for lanes of small and of large lesions."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.cluster.vq import kmeans2

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.fitted_anchors import (
    fitted_anchor_sizes,
    input_sides,
    k_means,
    with_fitted_anchors,
)
from uveitis_assets.detection.models.anchors import default_anchor_sizes
from uveitis_assets_tests.detection.labelled_images import labelled_image, truth_of

START = default_anchor_sizes((4,))


def test_centres_are_those_of_scipys_k_means_begun_at_the_same_places() -> None:
    rng = np.random.default_rng(3)
    values = rng.lognormal(2.0, 0.7, 500)
    right = np.sort(kmeans2(values, np.quantile(values, [1 / 6, 0.5, 5 / 6]), iter=1000, minit="matrix")[0])
    np.testing.assert_allclose(k_means(values, 3), right)
    np.testing.assert_array_equal(k_means(values, 3), k_means(rng.permutation(values), 3))


def test_repeated_values_do_not_lose_a_centre() -> None:
    np.testing.assert_array_equal(k_means(np.array([1.0] * 99 + [5.0]), 2), [1.0, 5.0])
    with pytest.raises(ValueError, match="at least 3 distinct values, found 2"):
        k_means(np.array([1.0, 1.0, 2.0]), 3)


def test_a_lane_of_tiny_lesions_gets_tiny_anchors_on_the_finest_level_only() -> None:
    sides = np.concatenate([np.full(50, 3.0), np.full(50, 5.0), [40.0]])
    sizes = fitted_anchor_sizes(sides, START)
    assert sizes[0] == (3.0, 5.0)
    assert sizes[1:] == START[1:], "levels with fewer distinct sides than anchors keep theirs"


def test_more_boxes_have_an_anchor_of_their_size_than_with_the_default() -> None:
    sides = np.random.default_rng(1).lognormal(1.4, 0.5, 4000)

    def distance(sizes: tuple[tuple[float, ...], ...]) -> float:
        all_sizes = np.log(np.concatenate([np.array(level) for level in sizes]))
        return float(np.abs(np.log(sides)[:, None] - all_sizes).min(axis=1).mean())

    assert distance(fitted_anchor_sizes(sides, START)) < 0.7 * distance(START)


def test_boxes_are_measured_in_the_networks_input_and_the_configuration_names_the_result() -> None:
    image = labelled_image("eye", [[1]])
    truth = truth_of([1, 1])
    truth = replace(truth, boxes=np.array([[0, 0, 4, 4], [0, 0, 8, 2]], np.float32))
    image = replace(image, tiles=(replace(image.tiles[0], truth=truth),))
    np.testing.assert_allclose(input_sides([image], 192), [8.0, 8.0])
    configuration = DetectorConfiguration.model_validate({"model": {"backbone": "resnet50_fpn"}})
    assert with_fitted_anchors(configuration, [image]) is configuration
    fit = DetectorConfiguration.model_validate({"model": {"backbone": "resnet50_fpn", "fit_anchors": True}})
    wider = replace(truth, boxes=np.array([[0, 0, 2, 2], [0, 0, 4, 4]], np.float32))
    image = replace(image, tiles=(replace(image.tiles[0], truth=wider),))
    fitted = with_fitted_anchors(
        fit.model_copy(update={"model": fit.model.model_copy(update={"input_size": 96})}), [image]
    )
    assert fitted.model.anchor_sizes[0] == (2.0, 4.0)


def test_a_whole_detector_to_start_from_keeps_its_anchors() -> None:
    with pytest.raises(ValueError, match=r"fit_anchors.*backbone_only"):
        DetectorConfiguration.model_validate({"model": {"fit_anchors": True}, "initialise": {"experiment": "other"}})
