"""Which tiles an epoch shows and how often, by rare classes and a share of tiles without lesions.

Rare classes are favoured by repeat factors (Gupta, Dollár, Girshick: LVIS, 2019): every tile with lesions is drawn at
least once an epoch, and one whose rarest class is in a share f of the images sqrt(rare_below / f) times. The order
depends on seed and epoch alone, so that processes share an epoch without talking and a killed training goes on in
its middle.
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
        self._repeats = weights[has_lesions] if configuration.class_balanced else np.ones(int(has_lesions.sum()))
        self._empty_share = configuration.empty_share
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
        n_lesion = self._n_lesion_draws()
        return math.ceil((n_lesion + self._n_empty_draws(n_lesion)) / self._world_size)

    def __len__(self) -> int:
        return max(0, self.draws_per_epoch - self._first_draw)

    def __iter__(self) -> Iterator[TileDraw]:
        draws = self.epoch_draws(self._epoch)
        return iter(draws[self._rank :: self._world_size][self._first_draw :])

    def epoch_draws(self, epoch: int) -> list[TileDraw]:
        """All processes' draws of an epoch; they take them in turn."""
        rng = np.random.default_rng((self._seed, _DRAWS, epoch))
        lesion = np.repeat(self._lesion_items, self._lesion_counts(rng))
        items = np.concatenate([lesion, _in_passes(self._empty_items, self._n_empty_draws(len(lesion)), rng)])
        order = rng.permutation(items)
        missing = -len(order) % self._world_size
        order = np.concatenate([order, np.resize(order, missing)])
        seen: Counter[int] = Counter()
        draws = []
        for item in order.tolist():
            draws.append(TileDraw(item, seen[item]))
            seen[item] += 1
        return draws

    def _lesion_counts(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """How often each tile with lesions is drawn: the whole part of its factor, and one more by chance.

        Systematic sampling of the fractions: the chances are exact and the sum is the same in every epoch.
        """
        whole = np.floor(self._repeats)
        order = rng.permutation(len(whole))
        fractions = (self._repeats - whole)[order]
        extra = self._n_lesion_draws() - int(whole.sum())
        counts = whole.astype(np.int64)
        if extra:
            ends = np.cumsum(fractions) * (extra / fractions.sum())
            ends[-1] = extra
            counts[order] += np.diff(np.floor(ends + rng.random()), prepend=0).astype(np.int64)
        return counts

    def _n_lesion_draws(self) -> int:
        return round(float(self._repeats.sum()))

    def _n_empty_draws(self, n_lesion_draws: int) -> int:
        if not len(self._empty_items):
            return 0
        return round(n_lesion_draws * self._empty_share / (1.0 - self._empty_share))


def _in_passes(items: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``n`` of the items at random, none twice before all came once."""
    if not n:
        return items[:0]
    passes = [rng.permutation(items) for _ in range(math.ceil(n / len(items)))]
    return np.concatenate(passes)[:n]


def _limited(n_images: int, max_images: int, seed: int) -> list[int]:
    if not 0 < max_images < n_images:
        return list(range(n_images))
    order = np.random.default_rng((seed, _SUBSET)).permutation(n_images)
    return sorted(order[:max_images].tolist())
