"""Milliseconds per image of merging tile detections: all images at once against a loop over images and categories.

The loop is the naive one: for every image, shift each tile's boxes; for every category, take the best box, drop what
overlaps it by more than the IoU, and go on with the rest (NumPy, one call per kept box). A second loop has torchvision
do each category's suppression. Both give the same boxes as nms, which is checked; the other ways of merging do more and
are timed beside it. Each sample runs in a process of its own and the ways take turns.

    python benchmarks/merging.py --images 1000 --boxes 400 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.merging import merge_images
from uveitis_assets.imaging.geometry import ImageFrames, Tile

N_CATEGORIES = 20
SCORE, IOU = 0.3, 0.5
FRAMES = ImageFrames(
    raw_size=(1024, 1024),
    crop_box=(0, 0, 1024, 1024),
    global_size=1024,
    pad_xy=(0, 0),
    padded_side=1024,
    frame="global",
    tiles=tuple(
        Tile(f"tile_{number:03d}", x, y, x + 768, y + 768)
        for number, (x, y) in enumerate((x, y) for y in (0, 256) for x in (0, 256))
    ),
)
Kept = list[tuple[float, ...]]


def tile_detections(n_images: int, n_boxes: int) -> list[list[Detections]]:
    """Lesions in clusters, each found several times; a fifth of the boxes lies below the score threshold."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(n_images):
        lesions = random.uniform(20, 740, (n_boxes // 8, 2))
        categories = random.integers(1, N_CATEGORIES + 1, len(lesions))
        of_tiles = []
        for _ in FRAMES.tiles:
            n = n_boxes // len(FRAMES.tiles)
            which = random.integers(0, len(lesions), n)
            centres = lesions[which] + random.normal(0, 4, (n, 2))
            half = random.uniform(4, 30, (n, 2))
            boxes = np.clip(np.hstack([centres - half, centres + half]), 0, 768).astype(np.float32)
            scores = random.uniform(0.125, 1, n).round(4).astype(np.float32)
            of_tiles.append(Detections(boxes, scores, categories[which]))
        images.append(of_tiles)
    return images


def naive_loop(images: Sequence[Sequence[Detections]]) -> list[Kept]:
    return [_merged_one_by_one(tiles, _suppress_with_numpy) for tiles in images]


def torchvision_loop(images: Sequence[Sequence[Detections]]) -> list[Kept]:
    return [_merged_one_by_one(tiles, _suppress_with_torchvision) for tiles in images]


def at_once(images: Sequence[Sequence[Detections]], merge: str = "nms") -> list[Detections]:
    configuration = InferenceConfiguration(merge=merge, score_threshold=SCORE, merge_iou=IOU)  # type: ignore[arg-type]
    return merge_images([FRAMES] * len(images), images, configuration)


def _merged_one_by_one(tiles: Sequence[Detections], suppress: Callable[[np.ndarray, np.ndarray], list[int]]) -> Kept:
    shifts = [np.array([tile.x0, tile.y0, tile.x0, tile.y0], np.float64) for tile in FRAMES.tiles]
    boxes = np.concatenate([found.boxes + shift for found, shift in zip(tiles, shifts, strict=True)])
    scores = np.concatenate([found.scores for found in tiles])
    labels = np.concatenate([found.labels for found in tiles])
    confident = scores >= np.float32(SCORE)
    boxes, scores, labels = boxes[confident], scores[confident], labels[confident]
    kept: Kept = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        # The same rule for ties as the library's: by the box.
        rows = rows[np.lexsort((*boxes[rows].T[::-1], -scores[rows]))]
        kept += [(*boxes[rows[row]], scores[rows[row]], label) for row in suppress(boxes[rows], scores[rows])]
    return kept


def _suppress_with_numpy(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    kept = []
    left = np.arange(len(boxes))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        areas = np.prod(boxes[left, 2:] - boxes[left, :2], axis=1)
        union = np.prod(boxes[best, 2:] - boxes[best, :2]) + areas - shared
        left = left[shared / union <= IOU]
    return kept


def _suppress_with_torchvision(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    import torch
    from torchvision.ops import nms

    order = torch.arange(len(boxes), 0, -1, dtype=torch.float64)
    rows: list[int] = nms(torch.from_numpy(boxes), order, IOU).tolist()
    return rows


def check_equal(images: Sequence[Sequence[Detections]]) -> None:
    """Raise unless both loops and nms keep the same boxes of every image."""
    together = at_once(images)
    for number, (found, *loops) in enumerate(zip(together, naive_loop(images), torchvision_loop(images), strict=True)):
        rows = zip(found.boxes, found.scores, found.labels, strict=True)
        expected = sorted((*np.float32(box), score, label) for box, score, label in rows)
        for loop in loops:
            if sorted((*np.float32(row[:4]), *row[4:]) for row in loop) != expected:
                raise SystemExit(f"image {number}: a loop and nms keep different boxes")


WAYS: dict[str, Callable[[Sequence[Sequence[Detections]]], object]] = {
    "naive loop": naive_loop,
    "torchvision loop": torchvision_loop,
    "nms": at_once,
    "edge_aware": lambda images: at_once(images, "edge_aware"),
    "weighted_box_fusion": lambda images: at_once(images, "weighted_box_fusion"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--boxes", type=int, default=400, help="tile boxes per image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process and print it as JSON")
    arguments = parser.parse_args()
    images = tile_detections(arguments.images, arguments.boxes)
    if arguments.way:
        WAYS[arguments.way](images[:2])
        started = time.process_time()
        WAYS[arguments.way](images)
        seconds = time.process_time() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "memory": memory}))
        return
    check_equal(images[: min(100, len(images))])
    print(
        f"{len(images)} images x {arguments.boxes} tile boxes, {N_CATEGORIES} categories; "
        "both loops and nms keep the same boxes"
    )
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, of_way in samples.items():
            command = [sys.executable, __file__, "--way", way]
            command += ["--images", str(arguments.images), "--boxes", str(arguments.boxes)]
            of_way.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    naive = statistics.median(sample["seconds"] for sample in samples["naive loop"])
    for way, of_way in samples.items():
        seconds = statistics.median(sample["seconds"] for sample in of_way)
        memory = max(sample["memory"] for sample in of_way) / 1e9
        print(
            f"{way:20} {seconds / len(images) * 1000:8.3f} ms of processor time per image, "
            f"{naive / seconds:6.1f} x the naive loop, {memory:.2f} GB"
        )


if __name__ == "__main__":
    main()
