"""Which tiles an epoch shows and how often, by rare classes and a limit on tiles without lesions.

Rare classes are favoured by repeat factors (Gupta, Dollár, Girshick: LVIS, 2019): every tile with lesions is drawn at
least once an epoch, and one whose rarest class is in a share f of the images sqrt(rare_below / f) times. What a factor
has beyond its whole part is carried from epoch to epoch: after n epochs a tile of factor 1.3 was drawn 1.3 n times,
one more or less. Tiles without lesions come at most once an epoch. The draws depend on seed and epoch alone, so that
processes share an epoch without talking and a killed training goes on in its middle.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from uveitis_assets.detection.configuration import SamplingConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledSplit, labelled_fingerprint
from uveitis_assets.detection.data.repeat_factors import CarriedRemainders
from uveitis_assets.detection.data.tile_dataset import TileDraw

# Each kind of random choice has a stream of its own: changing one leaves the others as they were.
_SUBSET, _DRAWS = 1, 2


def class_balanced_weights(images: Sequence[LabelledImage], *, rare_below: float) -> NDArray[np.float64]:
    """How often an epoch draws each tile on average, image after image; 0 for tiles without lesions.

    Args:
        images: all images that training may show; a class's frequency is the share of those with lesions that
            have it, so that negatives, however many, make no class rare.
        rare_below: classes in a smaller share of the images are drawn more often.

    Returns:
        (number of tiles,) float64: 0, or at least 1.
    """
    classes = [{label for tile in image.tiles for label in tile.truth.labels.tolist()} for image in images]
    with_lesions = sum(bool(found) for found in classes)
    counts = Counter(label for found in classes for label in found)
    repeats = {label: max(1.0, math.sqrt(rare_below * with_lesions / n)) for label, n in counts.items()}
    return np.array(
        [max((repeats[label] for label in tile.truth.labels), default=0.0) for image in images for tile in image.tiles],
        np.float64,
    )


def limit_images(images: Sequence[LabelledImage], max_images: int, seed: int) -> tuple[LabelledImage, ...]:
    """A random subset of at most ``max_images`` images in their order; 0 takes all.

    A smaller limit with the same seed takes some of the same images. Limiting twice is the same as once.
    """
    return tuple(images[position] for position in _limited(len(images), max_images, seed))


def overfit_split(split: LabelledSplit, n_images: int) -> LabelledSplit:
    """The few images that an overfitting run both trains on and is evaluated on: use the result for both.

    Images with lesions come first, then the others, in the split's order; where the split has fewer, it is all.

    Raises:
        ValueError: no image of the split has lesions: there would be nothing to learn.
    """
    with_lesions = [image for image in split.images if len(image.truth)]
    if not with_lesions:
        raise ValueError(
            f"{split.lane} fold {split.fold} {split.split}: expected images with lesions to overfit, found none among "
            f"{len(split.images)}"
        )
    others = [image for image in split.images if not len(image.truth)]
    images = tuple([*with_lesions, *others][:n_images])
    return replace(split, images=images, fingerprint=labelled_fingerprint(images, split.categories))


class EpochSampler(Sampler[TileDraw]):
    """Draws of one process, in order; positions are those of a ``TileDataset`` of the same images.

    All processes draw equally often: what is missing to a multiple is drawn again from the epoch's beginning.
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        configuration: SamplingConfiguration,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """``configuration.max_images`` restricts the draws to the tiles of a random subset of the images.

        Raises:
            ValueError: no tile has lesions, or the rank is not below the world size.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"expected a rank from 0 to {world_size - 1}, found {rank}")
        positions = _limited(len(images), configuration.max_images, seed)
        starts = np.cumsum([0, *(len(image.tiles) for image in images)])
        items = np.concatenate([np.zeros(0, np.int64), *(np.arange(starts[p], starts[p + 1]) for p in positions)])
        weights = class_balanced_weights([images[p] for p in positions], rare_below=configuration.rare_below)
        has_lesions = weights > 0
        if not has_lesions.any():
            raise ValueError(
                f"expected tiles with lesions to train on, found none in {len(positions)} of {len(images)} images "
                f"({len(items)} tiles); check the labels of the split or raise sampling.max_images"
            )
        self._lesion_items = items[has_lesions]
        self._empty_items = items[~has_lesions]
        repeats = weights[has_lesions] if configuration.class_balanced else np.ones(int(has_lesions.sum()))
        self._remainders = CarriedRemainders(repeats, seed)
        share, total = configuration.empty_share, self._remainders.total
        # What an epoch's tiles with lesions lack to the next whole number belongs to the others, if any are wanted.
        self._wanted_empty = round(total * share / (1.0 - share) + total % 1) if share else 0
        n_empty = min(self._wanted_empty, len(self._empty_items))
        self._shows_empty = n_empty > 0
        self._n_draws = math.floor(total) + n_empty if self._shows_empty else math.ceil(total)
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._first_draw = 0

    def set_epoch(self, epoch: int, first_draw: int = 0) -> None:
        """Choose the epoch, and how many of its draws a continued training has already used here."""
        self._epoch, self._first_draw = epoch, first_draw

    @property
    def draws_per_epoch(self) -> int:
        """Draws of this process in a whole epoch; the same in every epoch and process."""
        return math.ceil(self._n_draws / self._world_size)

    @property
    def has_remainders_or_few_empty_tiles(self) -> bool:
        """Whether factors are not whole, or there are fewer tiles without lesions than their share.

        Other trainings draw as they did when remainders were drawn by chance and empty tiles repeated.
        """
        return not self._remainders.are_zero or 0 < len(self._empty_items) < self._wanted_empty

    def __len__(self) -> int:
        return max(0, self.draws_per_epoch - self._first_draw)

    def __iter__(self) -> Iterator[TileDraw]:
        draws = self.epoch_draws(self._epoch)
        return iter(draws[self._rank :: self._world_size][self._first_draw :])

    def epoch_draws(self, epoch: int) -> list[TileDraw]:
        """All processes' draws of an epoch; they take them in turn."""
        rng = np.random.default_rng((self._seed, _DRAWS, epoch))
        # Of the tiles with lesions nothing is random; the draw keeps the epochs of trainings without remainders.
        rng.permutation(len(self._lesion_items))
        lesion = np.repeat(self._lesion_items, self._lesion_counts(epoch))
        n_empty = self._n_draws - len(lesion)
        empty = rng.permutation(self._empty_items)[:n_empty] if n_empty else self._empty_items[:0]
        items = np.concatenate([lesion, empty])
        order = rng.permutation(items)
        missing = -len(order) % self._world_size
        order = np.concatenate([order, np.resize(order, missing)])
        seen: Counter[int] = Counter()
        draws = []
        for item in order.tolist():
            draws.append(TileDraw(item, seen[item]))
            seen[item] += 1
        return draws

    def _lesion_counts(self, epoch: int) -> NDArray[np.int64]:
        # Epochs are equally long: where a remainder adds a tile with lesions, a tile without makes room.
        return self._remainders.counts(epoch, n_per_epoch=None if self._shows_empty else self._n_draws)


def _limited(n_images: int, max_images: int, seed: int) -> list[int]:
    if not 0 < max_images < n_images:
        return list(range(n_images))
    order = np.random.default_rng((seed, _SUBSET)).permutation(n_images)
    return sorted(order[:max_images].tolist())
