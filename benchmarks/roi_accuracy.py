"""IoU of the retina masks with hand outlines (ultra-widefield) and field-of-view masks (DRIVE), method by method.

Images are downscaled to 768 px as in the pipeline; the outlines' `ignore` polygons are left out of the score. DRIVE is
easy and only shows that nothing is broken. `--augment` repeats the `uwf` method under changes of the photograph,
`--stress` under harsher ones and with the lids of one photograph around the retina of every other, `--sample N` on N
generated images, whose truth is exact but whose lids and rims are drawn, and `--sensitivity` with each of its weights
moved by 30 %.

    python benchmarks/roi_accuracy.py --data ../shared/data --augment --stress --sample 120 --sensitivity
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

from uveitis_assets.fundus.roi.choice import downscale_for_roi
from uveitis_assets.fundus.roi.threshold import threshold_retina_mask
from uveitis_assets.fundus.roi.ultra_widefield import uwf_retina_mask
from uveitis_assets.fundus.roi.ultra_widefield_parameters import UwfRetinaParameters
from uveitis_assets.sample import render_ultra_widefield

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


def bannered(above: bool) -> Callable[[Example], Example]:
    """A black border, wider on one side, where a viewer writes the patient's line."""

    def apply(example: Example) -> Example:
        height, width = example.image.shape[:2]
        band, side = int(0.09 * height), int(0.04 * width)
        top, bottom = (band, 0) if above else (0, band)

        def pad(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
            bordered = cv2.copyMakeBorder(picture, top, bottom, side, side, cv2.BORDER_CONSTANT, value=(0, 0, 0))
            return np.asarray(bordered, dtype=np.uint8)

        image = pad(example.image)
        baseline = int(0.75 * band) + (0 if above else height)
        text, size, thickness = (
            "SAMPLE, PATIENT 1970-01-01 OD 2020-01-02 11:22 ID 0001234 RG",
            band / 70,
            max(1, band // 25),
        )
        cv2.putText(
            image, text, (side, baseline), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), thickness, cv2.LINE_AA
        )
        retina, ignored = (pad(plane.astype(np.uint8)) > 0 for plane in (example.retina, example.ignored))
        return Example(example.name, image, retina, ignored)

    return apply


def vignetted(share: float) -> Callable[[Example], Example]:
    """Light falls with the squared distance from the middle, by `share` in the corners."""

    def change(image: Image) -> NDArray[np.float64]:
        rows, columns = (np.linspace(-1, 1, side) for side in image.shape[:2])
        squared = (rows[:, None] ** 2 + columns**2) / 2
        return np.asarray(image * (1 - share * squared)[..., None])

    return photometric(change)


def squeezed(factor: float) -> Callable[[Example], Example]:
    """Width alone changed."""
    return geometric(
        lambda picture, flag: np.asarray(cv2.resize(picture, None, fx=factor, fy=1, interpolation=flag), dtype=np.uint8)
    )


def one_grey(weights: tuple[float, float, float]) -> Callable[[Example], Example]:
    """The same weighted mean of red, green and blue in all three channels."""
    return photometric(lambda image: np.repeat((image @ np.array(weights))[..., None], 3, axis=2))


def haze(x: float, y: float, spread: float, opacity: float) -> Callable[[Example], Example]:
    """A vitreous veil: contrast and sharpness are lost around one place; place and spread as shares of the frame."""

    def change(image: Image) -> NDArray[np.float64]:
        height, width = image.shape[:2]
        rows, columns = np.ogrid[:height, :width]
        squared = ((columns / width - x) / spread) ** 2 + ((rows / height - y) / spread) ** 2
        alpha = (opacity * np.exp(-squared / 2))[..., None]
        veil = 1.2 * np.percentile(image.reshape(-1, 3), 70, axis=0)
        blurred = cv2.GaussianBlur(image.astype(np.float64), (0, 0), height / 60)
        return np.asarray((1 - alpha) * image + alpha * (0.4 * blurred + 0.6 * veil))

    return photometric(change)


def laser_scars(example: Example) -> Example:
    """Panretinal photocoagulation: pale spots within the retina, half of them with pigment in the middle."""
    generator = np.random.default_rng(5)
    height, width = example.image.shape[:2]
    margin = np.ones((width // 25, width // 25), np.uint8)
    inner = cv2.erode(example.retina.astype(np.uint8), margin, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    gain = np.ones((height, width))
    for _ in range(200):
        angle, distance = generator.uniform(0, 2 * np.pi), generator.uniform(0.45, 0.9)
        radius, pigmented = generator.uniform(0.005, 0.011) * width, generator.random() < 0.5
        x, y = int((1 + np.cos(angle) * distance) * width / 2), int((1 + np.sin(angle) * distance) * height / 2)
        if inner[y, x]:
            cv2.circle(gain, (x, y), int(radius), 1.4, -1)
            cv2.circle(gain, (x, y), max(1, int(radius / 2)), 0.6 if pigmented else 1.7, -1)
    soft = cv2.GaussianBlur(gain, (0, 0), 1.2)[..., None]
    return photometric(lambda image: image * soft)(example)


def reflexes(image: Image) -> NDArray[np.float64]:
    """Two bright out-of-focus reflexes in the retina."""
    height, width = image.shape[:2]
    spots = np.zeros((height, width))
    cv2.ellipse(spots, (int(0.62 * width), int(0.3 * height)), (width // 8, height // 40), 20, 0, 360, 1, -1)
    cv2.ellipse(spots, (int(0.35 * width), int(0.72 * height)), (width // 20, height // 20), 0, 0, 360, 1, -1)
    alpha = 0.7 * cv2.GaussianBlur(spots, (0, 0), height / 120)[..., None]
    return np.asarray(image * (1 - alpha) + alpha * np.array([190, 210, 30]))


def gas_bubble(image: Image) -> NDArray[np.float64]:
    """A darker disc with a bright edge in the upper half."""
    height, width = image.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    bubble = (np.hypot((columns / width - 0.5) / 0.28, (rows / height - 0.3) / 0.2) < 1).astype(np.float32)
    edge = bubble - cv2.erode(bubble, np.ones((height // 50 + 1,) * 2, np.uint8))
    bubble, edge = (cv2.GaussianBlur(plane, (0, 0), height / 200)[..., None] for plane in (bubble, edge))
    return np.asarray(image * (1 - 0.45 * bubble) + 40 * edge)


STRESSES: dict[str, Callable[[Example], Example]] = {
    "banner above": bannered(above=True),
    "banner below": bannered(above=False),
    "JPEG quality 20": jpeg(20),
    "strong vignetting": vignetted(0.8),
    "gamma 0.5": photometric(lambda image: 255 * (image / 255) ** 0.5),
    "gamma 1.6": photometric(lambda image: 255 * (image / 255) ** 1.6),
    "brightness 2, clipped": photometric(lambda image: image * 2.0),
    "brightness 0.4": photometric(lambda image: image * 0.4),
    "30 % redder": photometric(lambda image: image * np.array([1.3, 0.77, 1.0])),
    "30 % greener": photometric(lambda image: image * np.array([0.77, 1.3, 1.0])),
    "grey": one_grey((0.5, 0.5, 0)),
    "red-free": one_grey((0, 1, 0)),
    "red only": one_grey((1, 0, 0)),
    "squeezed to 0.8": squeezed(0.8),
    "stretched to 1.25": squeezed(1.25),
    "central haze": haze(0.5, 0.45, 0.2, 0.8),
    "haze below": haze(0.45, 0.75, 0.18, 0.8),
    "resized to 300 px": resized(300),
    "laser scars": laser_scars,
    "reflexes": photometric(reflexes),
    "gas bubble": photometric(gas_bubble),
    "12 % cut on all sides": cropped(0.12, 0.12, 0.12, 0.12),
    "cut to the retina": cropped(0.22, 0.22, 0.22, 0.22),
}


def transplanted(inner: Example, outer: Example) -> Example:
    """The lids, lashes and rim of `outer` around the retina of `inner`, at the latter's brightness."""
    height, width = outer.retina.shape

    def fitted(plane: Mask) -> Mask:
        return cv2.resize(plane.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0

    image = cv2.resize(inner.image, (width, height)).astype(np.float64)
    shared = fitted(inner.retina) & outer.retina
    gain = [np.median(image[shared][:, c]) / np.median(outer.image[shared][:, c]) for c in (0, 1)]
    surround = np.clip(outer.image * np.array([*gain, 1.0]), 0, 255)
    weight = cv2.GaussianBlur(outer.retina.astype(np.float64), (0, 0), 2.5)[..., None]
    composed = np.asarray(image * weight + surround * (1 - weight), dtype=np.uint8)
    return Example(f"{inner.name} in {outer.name}", composed, shared, fitted(inner.ignored) | outer.ignored)


def generated_examples(count: int) -> list[Example]:
    examples = []
    for seed in range(count):
        sample = render_ultra_widefield(seed, 1560, 1228)
        image = downscale_for_roi(sample.image_rgb, MAX_SIDE)
        size = (image.shape[1], image.shape[0])
        covered = cv2.resize((sample.retina_mask > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        retina = covered > 0.5
        examples.append(Example(f"seed {seed}", image, retina, np.zeros_like(retina)))
    return examples


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
    parser.add_argument("--stress", action="store_true", help="the same under harsher changes and with foreign lids")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="the uwf method on N generated images")
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
    if arguments.stress:
        print("\nuwf method, harsher changes")
        for name, stress in STRESSES.items():
            print_row(name, [stress(example) for example in examples])
        print_row(
            "foreign lids and rim",
            [transplanted(inner, outer) for inner in examples for outer in examples if inner is not outer],
        )
    if arguments.sample:
        print("\nuwf method, generated images")
        print_row(f"{arguments.sample} seeds", generated_examples(arguments.sample))
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
