"""Sampling: rare classes come more often, empty tiles in their share, and every process agrees on the order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uveitis_assets.detection.configuration import SamplingConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.data.repeat_factors import CarriedRemainders
from uveitis_assets.detection.data.sampling import EpochSampler, class_balanced_weights, limit_images, overfit_split
from uveitis_assets.detection.data.tile_dataset import TileDraw
from uveitis_assets_tests.detection.labelled_images import labelled_image, random_images, split_of


def tiles_of(images: list[LabelledImage]) -> list[list[int]]:
    return [tile.truth.labels.tolist() for image in images for tile in image.tiles]


def drawn(sampler: EpochSampler, n_epochs: int) -> list[int]:
    return [draw.item for epoch in range(n_epochs) for draw in sampler.epoch_draws(epoch)]


@pytest.mark.parametrize(("n_images", "empty"), [(67, 0.3), (67, 0.9), (488, 0.6), (488, 0.95)])
@pytest.mark.parametrize("empty_share", [0.0, 0.25, 0.6])
def test_empty_tiles_come_in_their_share_and_the_rarest_class_more_often_than_uniformly(
    n_images: int, empty: float, empty_share: float
) -> None:
    """The earlier sampler drew 86 % empty tiles of 67 images and 99.7 % of 488, and rare classes least."""
    images = random_images(n_images, empty=empty)
    tiles = tiles_of(images)
    assert len(tiles) == 4 * n_images
    items = drawn(EpochSampler(images, SamplingConfiguration(empty_share=empty_share), 42), 5)
    n_empty = sum(not labels for labels in tiles)
    found = sum(not tiles[item] for item in items) / 5
    wanted = (len(items) / 5 - found) * empty_share / (1 - empty_share)
    # Where there are fewer, all are shown.
    assert found == pytest.approx(min(wanted, n_empty), abs=1.0)

    classes = Counter(label for labels in tiles for label in set(labels))
    rarest = min(classes, key=lambda label: classes[label])
    commonest = max(classes, key=lambda label: classes[label])
    shown = Counter(label for item in items for label in set(tiles[item]))
    with_lesions = sum(bool(labels) for labels in tiles)
    lesion_draws = sum(bool(tiles[item]) for item in items)

    def over_uniform(label: int) -> float:
        return (shown[label] / lesion_draws) / (classes[label] / with_lesions)

    assert over_uniform(rarest) > 1.3
    assert over_uniform(rarest) > over_uniform(commonest)
    assert set(items) >= {item for item, labels in enumerate(tiles) if labels}


def test_repeat_factors_are_those_of_the_published_formula() -> None:
    images = [labelled_image(f"a{n}", [[1], [], [1, 2] if n == 0 else [1], []]) for n in range(10)]
    images += [labelled_image(f"n{n}", [[], []]) for n in range(90)]
    weights = class_balanced_weights(images, rare_below=0.4)
    # Class 1 is in all images with lesions, class 2 in a tenth of them: sqrt(0.4 / 0.1) = 2.
    assert weights[:4].tolist() == [1, 0, 2, 0]
    assert weights[4:40].reshape(9, 4).tolist() == [[1, 0, 1, 0]] * 9
    assert not weights[40:].any()


def test_fractions_of_factors_are_met_on_average_and_every_epoch_is_equally_long() -> None:
    images = random_images(40, empty=0.5, seed=3)
    weights = class_balanced_weights(images, rare_below=0.3)
    sampler = EpochSampler(images, SamplingConfiguration(), 7)
    counts = np.zeros(len(weights))
    for epoch in range(800):
        draws = sampler.epoch_draws(epoch)
        assert len(draws) == sampler.draws_per_epoch
        items, n = np.unique([draw.item for draw in draws], return_counts=True)
        counts[items] += n
        per_epoch = np.zeros(len(weights))
        per_epoch[items] = n
        assert (np.abs(per_epoch - weights)[weights > 0] < 1 + 1e-6).all()
    lesions = weights > 0
    np.testing.assert_allclose(counts[lesions] / 800, weights[lesions], rtol=0.06)


def test_without_class_balance_every_tile_with_lesions_comes_once() -> None:
    images = random_images(30, empty=0.5)
    sampler = EpochSampler(images, SamplingConfiguration(class_balanced=False, empty_share=0.5), 1)
    counts = Counter(drawn(sampler, 1))
    tiles = tiles_of(images)
    assert {item for item in counts if tiles[item]} == {item for item, labels in enumerate(tiles) if labels}
    assert max(counts[item] for item in counts if tiles[item]) == 1


def test_a_tile_that_is_drawn_again_has_its_repeat_number() -> None:
    draws = EpochSampler(random_images(20, empty=0.5), SamplingConfiguration(), 5).epoch_draws(0)
    seen: dict[int, list[int]] = {}
    for draw in draws:
        seen.setdefault(draw.item, []).append(draw.repeat)
    assert all(repeats == list(range(len(repeats))) for repeats in seen.values())
    assert max(map(len, seen.values())) > 1


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 500), world_size=st.integers(1, 7), first=st.integers(0, 30))
@settings(max_examples=30)
def test_processes_share_an_epoch_equally_and_a_resumed_one_goes_on_where_it_stopped(
    seed: int, epoch: int, world_size: int, first: int
) -> None:
    images = random_images(12, empty=0.5)
    configuration = SamplingConfiguration()
    (whole,) = (set(EpochSampler(images, configuration, seed).epoch_draws(epoch)),)
    parts = []
    for rank in range(world_size):
        sampler = EpochSampler(images, configuration, seed, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        part = list(sampler)
        assert len(part) == len(sampler) == sampler.draws_per_epoch
        resumed = EpochSampler(images, configuration, seed, rank=rank, world_size=world_size)
        resumed.set_epoch(epoch, first_draw=first)
        assert list(resumed) == part[first:]
        assert len(resumed) == len(part[first:])
        parts.append(part)
    assert len({len(part) for part in parts}) == 1
    union = [draw for part in parts for draw in part]
    assert set(union) >= whole
    assert len(union) - len(whole) < world_size
    assert len(set(union)) == len(union)


def test_epochs_and_seeds_differ_and_the_same_ones_do_not() -> None:
    images = random_images(12, empty=0.5)

    def order(seed: int, epoch: int) -> list[TileDraw]:
        return EpochSampler(images, SamplingConfiguration(), seed).epoch_draws(epoch)

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


def test_all_empty_tiles_are_seen_over_the_epochs() -> None:
    images = random_images(50, empty=0.8)
    empty = {item for item, labels in enumerate(tiles_of(images)) if not labels}
    assert empty <= set(drawn(EpochSampler(images, SamplingConfiguration(), 3), 60))


@pytest.mark.parametrize("n_empty", [0, 1, 2, 5])
@pytest.mark.parametrize("empty_share", [0.1, 0.5, 0.9])
def test_the_share_of_empty_tiles_is_a_limit_and_none_comes_twice_an_epoch(n_empty: int, empty_share: float) -> None:
    """One empty tile among a hundred with lesions was drawn 36 times an epoch."""
    images = [labelled_image(f"a{n}", [[1], [1], [1], [] if n < n_empty else [1]]) for n in range(27)]
    tiles = tiles_of(images)
    sampler = EpochSampler(images, SamplingConfiguration(empty_share=empty_share), 3)
    for epoch in range(4):
        items = [draw.item for draw in sampler.epoch_draws(epoch)]
        assert len(items) == sampler.draws_per_epoch == 108
        assert Counter(items) == Counter(range(108)), epoch
    assert sum(not tile for tile in tiles) == n_empty


def test_lanes_that_want_no_empty_tiles_see_none() -> None:
    images = random_images(40, empty=0.5)
    tiles = tiles_of(images)
    items = drawn(EpochSampler(images, SamplingConfiguration(empty_share=0.0), 3), 6)
    assert all(tiles[item] for item in items)


@pytest.mark.parametrize("n_epochs", [1, 2, 7, 40])
def test_what_a_factor_has_beyond_its_whole_part_is_carried_to_the_next_epochs(n_epochs: int) -> None:
    images = random_images(60, empty=0.6, seed=5)
    weights = class_balanced_weights(images, rare_below=0.5)
    assert (weights % 1 > 0).any()
    counts = np.zeros(len(weights))
    for item in drawn(EpochSampler(images, SamplingConfiguration(rare_below=0.5), 11), n_epochs):
        counts[item] += 1
    lesions = weights > 0
    # By chance alone the standard deviation after 40 epochs is 3 draws.
    assert np.abs(counts - n_epochs * weights)[lesions].max() < 1.2
    assert counts[lesions].sum() == pytest.approx(n_epochs * weights.sum(), abs=0.5 + 1e-6)


def test_one_rare_tile_of_factor_1_4_comes_seven_times_in_five_epochs() -> None:
    remainders = CarriedRemainders(np.array([1.0, 1.4, 1.0]), seed=1)
    per_epoch = [remainders.counts(epoch).tolist() for epoch in range(5)]
    assert [counts[0] for counts in per_epoch] == [1] * 5
    assert sum(counts[1] for counts in per_epoch) == 7
    # Epochs can be asked for in any order: a killed training begins in the middle.
    assert CarriedRemainders(np.array([1.0, 1.4, 1.0]), seed=1).counts(3).tolist() == per_epoch[3]
    assert remainders.counts(0).tolist() == per_epoch[0]


def test_epochs_without_remainders_are_those_of_the_version_before() -> None:
    """Unfinished trainings go on in them; the numbers were written by that version."""
    images = [labelled_image(f"a{n}", [[1], [], [1], []]) for n in range(3)]
    sampler = EpochSampler(images, SamplingConfiguration(class_balanced=False, empty_share=0.25), 42)
    assert not sampler.has_remainders_or_few_empty_tiles
    assert [[draw.item for draw in sampler.epoch_draws(epoch)] for epoch in (0, 5)] == [
        [3, 0, 2, 8, 1, 10, 4, 6],
        [11, 2, 10, 4, 8, 6, 0, 5],
    ]


def test_class_balance_holds_with_a_limit_on_images() -> None:
    """The earlier scripts ignored class-balanced sampling as soon as the images were limited."""
    images = random_images(200, empty=0.5)
    configuration = SamplingConfiguration(max_images=60, rare_below=0.5)
    items = drawn(EpochSampler(images, configuration, 9), 1)
    chosen = limit_images(images, 60, 9)
    assert {item // 4 for item in items} <= {images.index(image) for image in chosen}
    assert max(Counter(items).values()) > 1
    # The same draws as from a dataset of the chosen images alone.
    alone = drawn(EpochSampler(chosen, configuration, 9), 1)
    tiles, chosen_tiles = [t for i in images for t in i.tiles], [t for i in chosen for t in i.tiles]
    assert [tiles[item].file for item in items] == [chosen_tiles[item].file for item in alone]


@given(n=st.integers(0, 30), fewer=st.integers(1, 30), seed=st.integers(0, 99))
def test_limits_take_nested_subsets_in_order(n: int, fewer: int, seed: int) -> None:
    images = random_images(20, empty=0.5)
    names = [image.image_id for image in limit_images(images, n, seed)]
    assert len(names) == (min(n, 20) if n else 20)
    assert names == sorted(names)
    if n and fewer <= n:
        assert {image.image_id for image in limit_images(images, fewer, seed)} <= set(names)


def test_overfitting_takes_images_with_lesions_first() -> None:
    images = [labelled_image("a", [[], []]), labelled_image("b", [[3], []]), labelled_image("c", [[], [4]])]
    split = split_of(images)
    assert [image.image_id for image in overfit_split(split, 2).images] == ["uwf700::b", "uwf700::c"]
    assert [image.image_id for image in overfit_split(split, 9).images] == ["uwf700::b", "uwf700::c", "uwf700::a"]
    assert len({split.fingerprint, overfit_split(split, 1).fingerprint, overfit_split(split, 2).fingerprint}) == 3
    with pytest.raises(ValueError, match="expected images with lesions to overfit, found none among 1"):
        overfit_split(split_of(images[:1]), 1)


def test_splits_without_lesions_and_wrong_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found none in 1 of 1 images \(2 tiles\)"):
        EpochSampler([labelled_image("a", [[], []])], SamplingConfiguration(), 1)
    with pytest.raises(ValueError, match="expected a rank from 0 to 1, found 2"):
        EpochSampler(random_images(3, empty=0.1), SamplingConfiguration(), 1, rank=2, world_size=2)
