"""Writes sample images in the landing layouts: uwf-700, FGADR, and a nested image folder.

Every item has its own generator derived from (seed, index), so that items can be written in any order, by any
number of threads, and again, with the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.painting import random_generator
from uveitis_assets.sample.regular_fundus import LESION_FOLDERS, render_regular_fundus
from uveitis_assets.sample.ultra_widefield import render_ultra_widefield
from uveitis_assets.storage.files import write_bytes

Item = TypeVar("Item")

OnWritten = Callable[[Path], None]
"""Called after each image with its path; from worker threads, one call at a time is not guaranteed."""

UWF_FOLDER, FGADR_FOLDER = "uwf-700", "fgadr"
UWF_JPEG_QUALITY = 86
LABELLED_DISEASE = "Uveitis"

FORCED_CLASSES = (4, 7, 5, 2, 1, 18, 15, 10, 9, 16, 12, 3, 6, 14, 17, 8, 11, 20, 13, 19)
"""The k-th labelled image shows at least the k-th class of this list: common ones first, then all of them."""


@dataclass(frozen=True, slots=True)
class _UwfItem:
    disease: str
    number: int
    classes: tuple[int, ...] | None
    label: str
    """``boxes``, ``empty`` (a labelled image without lesions) or ``missing`` (no label file)."""


def write_sample(
    root: Path,
    *,
    n_uwf: int = 24,
    n_fgadr: int = 16,
    seed: int = 0,
    uwf_size: tuple[int, int] = (1560, 1228),
    fgadr_size: int = 1024,
    workers: int | None = None,
    on_written: OnWritten | None = None,
) -> list[Path]:
    """Write both data sets below ``root``; returns the image paths.

    ``uwf_size`` is (width, height) in pixels.
    """
    written = write_uwf700(root, n_uwf, seed, *uwf_size, workers=workers, on_written=on_written)
    return written + write_fgadr(root, n_fgadr, seed, fgadr_size, workers=workers, on_written=on_written)


def write_uwf700(
    root: Path,
    n_images: int,
    seed: int = 0,
    width: int = 1560,
    height: int = 1228,
    *,
    workers: int | None = None,
    on_written: OnWritten | None = None,
) -> list[Path]:
    """Write ultra-widefield images and box labels in uwf-700's layout below ``root``.

    Files are ``uwf-700/Images/<Disease>/<stem>.jpg`` and ``uwf-700/Labels/Uveitis/<stem>.txt``.

    About two thirds of the images are labelled uveitis; the rest are unlabelled Healthy and RVO. From three uveitis
    images on, the second has an empty label file (a labelled image without lesions) and the third none.

    Returns:
        Image paths in order of their index, also those that were there before (they are written again).
    """
    folder = Path(root) / UWF_FOLDER

    def write(index: int, item: _UwfItem) -> Path:
        sample = render_ultra_widefield(_item_seed(seed, 700, index), width, height, classes=item.classes)
        stem = f"{item.disease}-{item.number:03d}"
        path = folder / "Images" / item.disease / f"{stem}.jpg"
        if item.label != "missing":
            # The label is written before its image: an image that is there has its label.
            write_bytes(
                folder / "Labels" / item.disease / f"{stem}.txt",
                oriented_box_lines(sample.objects, width, height).encode("ascii"),
            )
        write_bytes(path, encode_jpeg(sample.image_rgb, UWF_JPEG_QUALITY))
        return path

    return _write_all(write, list(enumerate(_uwf_items(n_images, seed))), workers, on_written)


def write_fgadr(
    root: Path,
    n_images: int,
    seed: int = 0,
    size: int = 1024,
    *,
    workers: int | None = None,
    on_written: OnWritten | None = None,
) -> list[Path]:
    """Write regular images and their masks (8-bit, 0/255) in FGADR's layout below ``root``.

    Files are ``fgadr/Original_Images/<id>.png`` and ``fgadr/<Class>_Masks/<id>.png``.

    A class that an image does not show has an all-zero mask in even-numbered images and no file in odd ones: real
    data sets do both.

    Returns:
        Image paths in order of their index.
    """
    folder = Path(root) / FGADR_FOLDER

    def write(index: int, name: str) -> Path:
        sample = render_regular_fundus(_item_seed(seed, 1842, index), size)
        for mask_folder in LESION_FOLDERS:
            mask = sample.lesion_masks[mask_folder]
            if mask.any() or index % 2 == 0:
                write_bytes(folder / mask_folder / name, encode_png(np.where(mask, 255, 0).astype(np.uint8)))
        path = folder / "Original_Images" / name
        write_bytes(path, encode_png(cv2.cvtColor(sample.image_rgb, cv2.COLOR_RGB2BGR)))
        return path

    names = [f"{index // 3 + 1:04d}_{index % 3 + 1}.png" for index in range(n_images)]
    return _write_all(write, list(enumerate(names)), workers, on_written)


def write_many_small(
    root: Path,
    n_images: int,
    seed: int = 0,
    width: int = 64,
    height: int = 48,
    *,
    workers: int | None = None,
    on_written: OnWritten | None = None,
) -> list[Path]:
    """Write many small, distinct JPEG fundus images for benchmarks, about 0.5 ms of one core each.

    Layout: ``<root>/<thousands>/<patient>_<left|right>.jpg``, two eyes per patient. Each image is a different cut,
    turn and exposure of a few rendered eyes, with its own haemorrhages and noise.

    Returns:
        Image paths in order of their index.
    """
    side = max(width, height) * 3
    bank = [render_regular_fundus(_item_seed(seed, 31, k), max(side, 128)).image_rgb for k in range(12)]

    def write(index: int, _: None) -> Path:
        rng = random_generator(seed, 64, index)
        source = bank[index % len(bank)]
        zoom = source.shape[0] / max(width, height) * rng.uniform(0.75, 1.0)
        turn = rng.uniform(-0.5, 0.5) + (np.pi if index % 24 >= 12 else 0.0)
        cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
        middle = source.shape[0] / 2.0 + rng.uniform(-0.05, 0.05, 2) * source.shape[0]
        matrix = np.array(
            [
                [cos, -sin, middle[0] - cos * width / 2 + sin * height / 2],
                [sin, cos, middle[1] - sin * width / 2 - cos * height / 2],
            ]
        )
        image = cv2.warpAffine(source, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        for x, y, radius in rng.uniform((0.2, 0.2, 0.8), (0.8, 0.8, 2.4), (3, 3)):
            cv2.circle(image, (round(x * width), round(y * height)), round(radius), (96, 22, 14), -1, cv2.LINE_AA)
        noise = rng.integers(-5, 6, (height, width, 1), dtype=np.int8)
        cv2.add(image, np.repeat(noise, 3, axis=2), dst=image, dtype=cv2.CV_8U)
        eye = "left" if index % 2 == 0 else "right"
        path = Path(root) / f"{index // 1000:04d}" / f"{index // 2:06d}_{eye}.jpg"
        write_bytes(path, encode_jpeg(image, 88))
        return path

    return _write_all(write, [(index, None) for index in range(n_images)], workers, on_written)


def oriented_box_lines(objects: Iterable[tuple[int, NDArray[np.float64]]], width: int, height: int) -> str:
    """Label file text: ``class x1 y1 x2 y2 x3 y3 x4 y4`` per line, normalised to the image, 6 decimals."""
    lines = []
    for class_id, corners in objects:
        normalised = (corners / np.array([width, height])).reshape(-1)
        lines.append(" ".join([str(class_id), *(f"{value:.6f}" for value in normalised)]) + "\n")
    return "".join(lines)


def encode_jpeg(image_rgb: NDArray[Any], quality: int) -> bytes:
    """Encode an (h, w, 3) RGB image as a baseline JPEG."""
    return _encode(".jpg", cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(image: NDArray[Any]) -> bytes:
    """Encode a uint8 (h, w) or BGR (h, w, 3) image as a PNG."""
    return _encode(".png", image, [])


def _encode(extension: str, image: NDArray[Any], options: Sequence[int]) -> bytes:
    done, data = cv2.imencode(extension, image, list(options))
    if not done:
        raise ValueError(f"encoding a {image.shape} image as {extension} failed")
    return data.tobytes()


def _item_seed(seed: int, dataset: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, dataset, index]).generate_state(1, np.uint64)[0])


def _uwf_items(n_images: int, seed: int) -> list[_UwfItem]:
    """Two uveitis images, then one of another disease, and so on."""
    items: list[_UwfItem] = []
    counts: dict[str, int] = {}
    labelled = 0
    for index in range(n_images):
        disease = LABELLED_DISEASE if index % 3 < 2 else ("Healthy" if index % 6 == 2 else "RVO")
        number = counts[disease] = counts.get(disease, 0) + 1
        classes: tuple[int, ...] | None = ()
        label = "missing"
        if disease == LABELLED_DISEASE and number == 2:
            label = "empty"
        elif disease == LABELLED_DISEASE:
            rng = random_generator(seed, 5, index)
            extra = rng.choice(FORCED_CLASSES[:12], size=int(rng.integers(1, 4)), replace=False)
            forced = FORCED_CLASSES[labelled % len(FORCED_CLASSES)]
            classes = (forced, *sorted({int(c) for c in extra} - {forced}))
            label = "missing" if number == 3 else "boxes"
            labelled += 1
        elif disease == "RVO":
            classes = (5, 18)
        items.append(_UwfItem(disease, number, classes, label))
    return items


def _write_all(
    write: Callable[[int, Item], Path],
    items: Sequence[tuple[int, Item]],
    workers: int | None,
    on_written: OnWritten | None,
) -> list[Path]:
    count = workers if workers is not None else len(os.sched_getaffinity(0))

    def one(job: tuple[int, Item]) -> Path:
        path = write(*job)
        if on_written is not None:
            on_written(path)
        return path

    if count <= 1 or len(items) < 2:
        return [one(job) for job in items]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, items))
