"""IoU of the retina masks with hand outlines (ultra-widefield) and field-of-view masks (DRIVE), method by method.

Images are downscaled to 768 px as in the pipeline; the outlines' `ignore` polygons are left out of the score. DRIVE is
easy and only shows that nothing is broken. `--augment` repeats the `uwf` method under changes of the photograph,
`--sensitivity` with each of its weights moved by 30 %.

    python benchmarks/roi_accuracy.py --data ../shared/data --augment --sensitivity
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.roi import downscale_for_roi
from uveitis_assets.fundus.roi_threshold import threshold_retina_mask
from uveitis_assets.fundus.roi_uwf import UwfRetinaParameters, uwf_retina_mask

MAX_SIDE = 768

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Method = Callable[[Image], NDArray[np.uint8]]

METHODS: dict[str, Method] = {
    "uwf": uwf_retina_mask,
    "threshold": threshold_retina_mask,
    "whole frame": lambda image: np.full(image.shape[:2], 255, np.uint8),
}


@dataclass(frozen=True)
class Example:
    """An RGB image, its retina, and the pixels that no score may count."""

    name: str
    image: Image
    retina: Mask
    ignored: Mask


def read_rgb(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise SystemExit(f"{path}: not readable as an image")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def fill_polygons(polygons: list[list[list[float]]], scale: tuple[float, float], shape: tuple[int, int]) -> Mask:
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.round((np.array(polygon) * scale - 0.5) * 16).astype(np.int32)], 1, shift=4)
    return mask > 0


def ultra_widefield_examples(data: Path) -> Iterator[Example]:
    for truth_file in sorted((data / "uwf" / "roi_truth").glob("*.json")):
        truth = json.loads(truth_file.read_text())
        image = downscale_for_roi(read_rgb(data / "uwf" / "images" / truth["image"]), MAX_SIDE)
        height, width = image.shape[:2]
        scale = (width / truth["width"], height / truth["height"])
        retina = fill_polygons([truth["polygon"]], scale, (height, width))
        yield Example(truth_file.stem, image, retina, fill_polygons(truth["ignore"], scale, (height, width)))


def drive_examples(data: Path) -> Iterator[Example]:
    for mask_file in sorted((data / "drive" / "fov_masks").glob("*.png")):
        stem = mask_file.stem.removesuffix("_mask")
        retina = read_rgb(mask_file)[..., 0] > 127
        yield Example(stem, read_rgb(data / "drive" / "images" / f"{stem}.tif"), retina, np.zeros_like(retina))


def intersection_over_union(mask: NDArray[np.uint8], example: Example) -> float:
    counted = ~example.ignored
    found = mask > 0
    union = int(np.count_nonzero((found | example.retina) & counted))
    return int(np.count_nonzero(found & example.retina & counted)) / max(1, union)


def geometric(change: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]) -> Callable[[Example], Example]:
    """An augmentation that moves pixels; `change` takes the picture and an interpolation flag."""

    def apply(example: Example) -> Example:
        retina, ignored = (
            change(plane.astype(np.uint8), cv2.INTER_NEAREST) > 0 for plane in (example.retina, example.ignored)
        )
        return Example(example.name, change(example.image, cv2.INTER_LINEAR), retina, ignored)

    return apply


def photometric(change: Callable[[Image], NDArray[np.generic]]) -> Callable[[Example], Example]:
    """An augmentation that changes values only; the result is rounded and clipped to uint8."""

    def apply(example: Example) -> Example:
        changed = np.clip(np.round(change(example.image).astype(np.float64)), 0, 255).astype(np.uint8)
        return dataclasses.replace(example, image=changed)

    return apply


def rotated(degrees: float) -> Callable[[Example], Example]:
    def change(picture: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
        return np.asarray(cv2.warpAffine(picture, matrix, (width, height), flags=interpolation), dtype=np.uint8)

    return geometric(change)


def resized(longest_side: int) -> Callable[[Example], Example]:
    def change(picture: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        scale = longest_side / max(height, width)
        size = (round(width * scale), round(height * scale))
        if interpolation == cv2.INTER_LINEAR and scale < 1:
            interpolation = cv2.INTER_AREA
        return np.asarray(cv2.resize(picture, size, interpolation=interpolation), dtype=np.uint8)

    return geometric(change)


def cropped(left: float, top: float, right: float, bottom: float) -> Callable[[Example], Example]:
    """Cut the given shares off the four sides."""

    def change(picture: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        rows = slice(int(top * height), height - int(bottom * height))
        return np.ascontiguousarray(picture[rows, int(left * width) : width - int(right * width)])

    return geometric(change)


def padded(share: float) -> Callable[[Example], Example]:
    def change(picture: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
        y, x = (int(share * side) for side in picture.shape[:2])
        return np.asarray(cv2.copyMakeBorder(picture, y, y, x, x, cv2.BORDER_CONSTANT, value=0), dtype=np.uint8)

    return geometric(change)


def jpeg(quality: int) -> Callable[[Example], Example]:
    def change(image: Image) -> Image:
        encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded is not None
        return np.asarray(decoded[..., ::-1], dtype=np.uint8)

    return photometric(change)


def haemorrhage(x: float, y: float, radius: float) -> Callable[[Example], Example]:
    """A dark disc with a sharp edge, as a subhyaloid bleed has; position and radius as shares of the frame."""

    def change(image: Image) -> Image:
        height, width = image.shape[:2]
        rows, columns = np.ogrid[:height, :width]
        blood = np.hypot((columns / width - x) / radius, (rows / height - y) / radius) < 1
        return np.where(blood[..., None], np.array([30, 10, 2], np.uint8), image)

    return photometric(change)


AUGMENTATIONS: dict[str, Callable[[Example], Example]] = {
    "horizontal flip": geometric(lambda picture, _: np.ascontiguousarray(picture[:, ::-1])),
    "vertical flip": geometric(lambda picture, _: np.ascontiguousarray(picture[::-1])),
    "rotated -7°": rotated(-7),
    "rotated -3°": rotated(-3),
    "rotated 3°": rotated(3),
    "rotated 7°": rotated(7),
    "brightness 0.7": photometric(lambda image: image * 0.7),
    "brightness 1.4": photometric(lambda image: image * 1.4),
    "gamma 0.7": photometric(lambda image: 255 * (image / 255) ** 0.7),
    "gamma 1.4": photometric(lambda image: 255 * (image / 255) ** 1.4),
    "redder": photometric(lambda image: image * np.array([1.2, 0.8, 1.0])),
    "greener": photometric(lambda image: image * np.array([0.8, 1.2, 1.0])),
    "blur 2 px": photometric(lambda image: cv2.GaussianBlur(image, (0, 0), 2)),
    "noise 8 levels": photometric(lambda image: image + np.random.default_rng(0).normal(0, 8, image.shape)),
    "JPEG quality 40": jpeg(40),
    "resized to 200 px": resized(200),
    "resized to 400 px": resized(400),
    "resized to 1536 px": resized(1536),
    "border 5 % cropped": cropped(0.05, 0.05, 0.05, 0.05),
    "left 20 % cropped": cropped(0.2, 0, 0, 0),
    "right 20 % cropped": cropped(0, 0, 0.2, 0),
    "top 20 % cropped": cropped(0, 0.2, 0, 0),
    "bottom 20 % cropped": cropped(0, 0, 0, 0.2),
    "black border 10 %": padded(0.1),
    "central bleed": haemorrhage(0.45, 0.5, 0.15),
    "peripheral bleed": haemorrhage(0.3, 0.6, 0.12),
}


def print_methods(title: str, examples: list[Example]) -> None:
    print(f"\n{title:24s}" + "".join(f"{name:>13s}" for name in METHODS))
    scores = {name: [intersection_over_union(method(e.image), e) for e in examples] for name, method in METHODS.items()}
    for row, example in enumerate(examples):
        print(f"{example.name:24s}" + "".join(f"{scores[name][row]:13.3f}" for name in METHODS))
    for label, statistic in (("mean", np.mean), ("min", np.min)):
        print(f"{label:24s}" + "".join(f"{statistic(values):13.3f}" for values in scores.values()))
    for name, method in METHODS.items():
        times = []
        for example in examples:
            start = time.perf_counter()
            method(example.image)
            times.append(time.perf_counter() - start)
        print(f"{name}: {1000 * float(np.median(times)):.0f} ms an image (median)")


def print_row(label: str, examples: list[Example], parameters: UwfRetinaParameters | None = None) -> None:
    scores = [intersection_over_union(uwf_retina_mask(e.image, parameters), e) for e in examples]
    print(f"{label:32s} mean {np.mean(scores):.3f}  min {np.min(scores):.3f}  {examples[int(np.argmin(scores))].name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("UVEITIS_REAL_DATA", "../shared/data")),
        help="folder with uwf/ and drive/; default $UVEITIS_REAL_DATA, else ../shared/data",
    )
    parser.add_argument("--augment", action="store_true", help="table of the uwf method under augmentations")
    parser.add_argument(
        "--sensitivity", action="store_true", help="table of the uwf method with weights moved by 30 %%"
    )
    arguments = parser.parse_args()
    if not (arguments.data / "uwf" / "images").is_dir():
        print(f"{arguments.data}: found no outlined photographs, nothing was measured; name their folder with --data")
        return
    cv2.setNumThreads(1)
    examples = list(ultra_widefield_examples(arguments.data))
    print_methods("ultra-widefield", examples)
    print_methods("DRIVE", list(drive_examples(arguments.data)))
    if arguments.augment:
        print("\nuwf method, augmented images")
        for name, augment in AUGMENTATIONS.items():
            print_row(name, [augment(example) for example in examples])
    if arguments.sensitivity:
        print("\nuwf method, one weight moved, images as they are and four augmentations of each")
        augmentations = [AUGMENTATIONS[k] for k in ("rotated 7°", "border 5 % cropped", "gamma 1.4", "blur 2 px")]
        pool = examples + [augment(example) for augment in augmentations for example in examples]
        default = UwfRetinaParameters()
        print_row("defaults", pool)
        for name, value in dataclasses.asdict(default).items():
            for factor in (0.7, 1.3):
                print_row(f"{name} x {factor}", pool, dataclasses.replace(default, **{name: value * factor}))


if __name__ == "__main__":
    main()
