"""Reference colours for Reinhard normalization: RGB and LAB statistics of regular photographs.

Images and pixels are sampled with seeded generators, so that the same images give the same file.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.color import ReferenceColor, erode_mask
from uveitis_assets.fundus.configuration import NormalizationConfiguration
from uveitis_assets.fundus.image_stages import read_registered_image
from uveitis_assets.fundus.roi.choice import downscale_for_roi
from uveitis_assets.fundus.roi.threshold import threshold_retina_mask
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.storage.digests import short_digest
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore

# Dataset tags of regular fundus photographs.
REGULAR_DATASETS = ("deepdrid_regular", "eyepacs", "fgadr")

_KIND = "regular_fundus_color_reference"
_ROI_METHOD = "threshold"
_SEED = 42


class ReferenceColorMissingError(FileNotFoundError):
    """The file of reference colours is missing; the message says how to make it."""


class ReferenceColorError(ValueError):
    """The file of reference colours is damaged; the message names it and says how to make it again."""


@dataclass(frozen=True, slots=True)
class ReferenceColorReport:
    """Content of the reference file, and sampled images that could not be used, with reasons."""

    content: dict[str, Any]
    skipped: tuple[tuple[str, str], ...]


def build_reference_color(
    store: ArtefactStore,
    images: Sequence[RegisteredImage],
    *,
    per_dataset: int = 50,
    max_images: int = 0,
    downsample_max_side: int = 512,
    pixels_per_image: int = 20000,
    stats_erode_px: int = 4,
    sat_threshold: int = 18,
    workers: int = 1,
) -> ReferenceColorReport:
    """Pool pixels inside the eroded ROI of a sample of images and take their mean and standard deviation.

    Args:
        store: to read the images.
        images: registered images of the regular datasets; quarantined ones are passed over.
        per_dataset: images sampled of each dataset tag.
        max_images: images altogether at most; 0 sets no limit.
        downsample_max_side: longest side that the images are shrunk to first, px.
        pixels_per_image: pixels sampled of each image.
        stats_erode_px: erosion of the ROI, px of the shrunken image.
        sat_threshold: of the threshold ROI method.
        workers: threads that read images; the result does not depend on it.

    Raises:
        ValueError: no image gave a pixel.
    """
    sample = _sample_images(images, per_dataset, max_images)

    def pixels_of(image: RegisteredImage) -> NDArray[np.uint8] | str:
        return _retina_pixels(store, image, downsample_max_side, stats_erode_px, sat_threshold)

    generator = np.random.default_rng(_SEED)
    pooled: list[NDArray[np.uint8]] = []
    used: list[RegisteredImage] = []
    skipped: list[tuple[str, str]] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for image, pixels in zip(sample, pool.map(pixels_of, sample), strict=True):
            if isinstance(pixels, str):
                skipped.append((image.image_id, pixels))
                continue
            n_taken = min(pixels_per_image, len(pixels))
            pooled.append(pixels[np.sort(generator.choice(len(pixels), n_taken, replace=False))])
            used.append(image)
    if not pooled:
        raise ValueError(
            f"reference_color: none of {len(sample)} sampled images could be used; register regular fundus images "
            f"(datasets {', '.join(REGULAR_DATASETS)})" + "".join(f"\n{name}: {reason}" for name, reason in skipped)
        )
    rgb = np.concatenate(pooled)
    content = {
        "kind": _KIND,
        "datasets": sorted({image.dataset for image in used}),
        "n_images_used": len(used),
        "n_pixels": len(rgb),
        **_color_statistics(rgb),
        "cfg": {"stats_erode_px": stats_erode_px, "roi_method": _ROI_METHOD},
    }
    return ReferenceColorReport(content, tuple(skipped))


def _retina_pixels(
    store: ArtefactStore, image: RegisteredImage, max_side: int, erode_px: int, sat_threshold: int
) -> NDArray[np.uint8] | str:
    """Pixels (n, 3) RGB inside the eroded ROI of a shrunken image, or the reason why it cannot be used."""
    try:
        small = downscale_for_roi(read_registered_image(store, image), max_side)
    except QuarantineError as error:
        return str(error)
    mask = threshold_retina_mask(small, sat_threshold)
    if cv2.countNonZero(mask) == 0:
        return "roi_not_found: the threshold method found no retina"
    pixels = small[erode_mask(mask, erode_px) > 0]
    lit = pixels.any(axis=1)
    return pixels[lit] if lit.any() else pixels


def _color_statistics(rgb: NDArray[np.uint8]) -> dict[str, list[float]]:
    """Mean and deviation of pixels (n, 3) RGB in RGB and in 8-bit OpenCV LAB."""
    lab = cv2.cvtColor(rgb[:, None, :], cv2.COLOR_RGB2LAB)[:, 0, :]
    return {
        "rgb_mean": rgb.mean(axis=0, dtype=np.float64).tolist(),
        "rgb_std": rgb.std(axis=0, dtype=np.float64).tolist(),
        "lab_mean": lab.mean(axis=0, dtype=np.float64).tolist(),
        "lab_std": lab.std(axis=0, dtype=np.float64).tolist(),
    }


def read_reference_color(path: Path) -> ReferenceColor:
    """Read a reference file, also one of the earlier scripts.

    Raises:
        ReferenceColorMissingError: there is none.
        ReferenceColorError: it is not a reference file.
    """
    if not path.exists():
        raise ReferenceColorMissingError(
            f"{path}: no reference colours; materialize reference_color or choose another normalization method"
        )
    try:
        content = read_json(path)
        mean, std = (tuple(float(value) for value in content[name]) for name in ("lab_mean", "lab_std"))
        if content["kind"] != _KIND or len(mean) != 3 or len(std) != 3 or not np.isfinite([*mean, *std]).all():
            raise ValueError(f"kind {content['kind']}, lab_mean {mean}, lab_std {std}")
    except (KeyError, TypeError, ValueError, OverflowError, IsADirectoryError) as error:
        found = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise ReferenceColorError(
            f"{path}: expected {_KIND} with lab_mean and lab_std, found {found}; materialize reference_color again, or "
            "put back the file that the crops were made with"
        ) from error
    return ReferenceColor((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def reference_color_digest(reference: ReferenceColor) -> str:
    """16 hex digits that change with the colours."""
    return short_digest(repr(reference))


def present_reference_digest(store: ArtefactStore, normalize: NormalizationConfiguration) -> str | None:
    """Digest of the reference colours that normalization uses now; None without any.

    Raises:
        ReferenceColorError: the file of reference colours is not one.
    """
    if normalize.method != "reinhard_lab_ref":
        return None
    try:
        return reference_color_digest(read_reference_color(store.reference_color_file()))
    except ReferenceColorMissingError:
        return None


def _sample_images(images: Sequence[RegisteredImage], per_dataset: int, max_images: int) -> list[RegisteredImage]:
    """Sorted sample of the usable images; the order of arrival does not matter."""
    generator = random.Random(_SEED)  # noqa: S311 - a sample, not a secret
    usable = sorted((image for image in images if image.quarantine_reason is None), key=lambda image: image.image_id)
    chosen: list[RegisteredImage] = []
    for dataset in sorted({image.dataset for image in usable}):
        candidates = [image for image in usable if image.dataset == dataset]
        chosen += generator.sample(candidates, min(per_dataset, len(candidates)))
    if 0 < max_images < len(chosen):
        chosen = generator.sample(chosen, max_images)
    return sorted(chosen, key=lambda image: image.image_id)
