"""Exports the best checkpoint of a fold to an ONNX file that finds what the checkpoint finds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.checkpoints.fold_weights import FoldWeights, fold_weights
from uveitis_assets.detection.data.letterbox import fit_to_input
from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage, PreprocessedTile
from uveitis_assets.detection.data.tile_files import read_tile_pixels
from uveitis_assets.detection.exports.onnx_comparison import Comparison, compare_detectors
from uveitis_assets.detection.exports.onnx_model import INPUT, onnx_bytes, require_onnx_packages
from uveitis_assets.detection.model_configuration import FEWEST_DETECTIONS
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.storage.files import read_json, write_bytes
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets.training.weights_files import read_lineage

N_TILES = 10
FORMAT = "uveitis_assets detector 1"
_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """A written file, its size, and how equal it is to the checkpoint's detector."""

    path: Path
    n_bytes: int
    checkpoint: str
    comparison: Comparison


def export_onnx(store: ArtefactStore, detector: str, fold: int, path: Path, *, tiles: Path | None = None) -> OnnxExport:
    """Write a fold's detector as an ONNX file; nothing is written unless it gives what the detector gives.

    Args:
        store: where all artefacts are.
        detector: the lane's name.
        fold: whose best checkpoint is taken.
        path: the file, which is replaced; its name ends in ``.onnx``.
        tiles: folder of pictures to compare on, the first ten by name; None: a tile of each of ten images that the
            checkpoint learned.

    Raises:
        OnnxPackagesMissingError: a package of the extra ``onnx`` is not installed.
        FileNotFoundError: there is no checkpoint.
        TrainingNotUsableError: the training is not finished, or its weights were replaced.
        ExportDiffersError: the exported detector gives something else than the checkpoint's.
        ValueError: another suffix, no tiles to compare on, or weights larger than an ONNX file can be.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: expected a file name that ends in .onnx")
    require_onnx_packages()
    weights = fold_weights(store, detector, fold)
    model: Any = weights.load()
    input_size = int(model.transform.max_size)
    # Read first: the export of a large network takes minutes.
    inputs = {
        name: _as_input(pixels, input_size)
        for name, pixels in (_learned_tiles(store, weights) if tiles is None else _pictures(tiles))
    }
    facts = _facts(detector, fold, weights, input_size)
    data = onnx_bytes(model, facts)
    weights.check_unchanged()
    comparison = compare_detectors(
        model,
        _runner(data),
        inputs,
        score_threshold=float(facts["box_score_threshold"]),
        limit=int(facts["detections_per_tile"]),
    )
    write_bytes(path, data)
    return OnnxExport(path, len(data), weights.digest, comparison)


def _facts(detector: str, fold: int, weights: FoldWeights, input_size: int) -> dict[str, str]:
    """What the file says of itself, from the checkpoint and this code alone."""
    lineage = read_lineage(weights.path)
    configuration: Mapping[str, Any] = lineage["configuration"]
    network: Mapping[str, Any] = configuration["model"]
    return {
        "format": FORMAT,
        "detector": detector,
        "fold": str(fold),
        "checkpoint": weights.digest,
        "code_version": f"uveitis_assets {version('uveitis-assets')}, weights {lineage.get('code_version', 'unknown')}",
        "categories": json.dumps({str(number): name for number, name in sorted(weights.categories.items())}),
        "input": f"{INPUT}: float32 (1, 3, {input_size}, {input_size}), RGB, 0 to 1",
        "input_size": str(input_size),
        "box_score_threshold": str(network["box_score_threshold"]),
        "box_nms_iou": str(network["box_nms_iou"]),
        "detections_per_tile": str(network.get("detections_per_tile") or FEWEST_DETECTIONS),
        "score_threshold": str(configuration["inference"]["score_threshold"]),
    }


def _as_input(pixels: Pixels, input_size: int) -> NDArray[np.float32]:
    """A tile as the network takes it: float32 (1, 3, S, S), RGB 0..1."""
    fitted, _ = fit_to_input(pixels, input_size)
    return np.ascontiguousarray(fitted.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def _runner(data: bytes) -> Any:
    onnxruntime: Any = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(tile: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        return dict(zip(names, session.run(names, {INPUT: tile}), strict=True))

    return run


def _learned_tiles(store: ArtefactStore, weights: FoldWeights) -> Iterator[tuple[str, Pixels]]:
    """Ten tiles of images that the checkpoint learned, spread over all of them, in the order of their ids."""
    present = [key for key in sorted(weights.learned_images) if store.tiles_metadata(artefact_key(key)).is_file()]
    if not present:
        raise ValueError(
            f"{weights.name}: expected tiles of some of the {len(weights.learned_images)} images that it learned below "
            f"{store.root}, to compare on, found none; materialize the tiles, or name a folder of pictures (--tiles)"
        )
    for number in range(N_TILES):
        image_id = present[number * len(present) // N_TILES]
        key = artefact_key(image_id)
        frames = ImageFrames.from_metadata(read_json(store.crop_metadata(key)), read_json(store.tiles_metadata(key)))
        files = tuple(PreprocessedTile(store.tile(key, tile.tile_id)) for tile in frames.tiles)
        pixels = read_tile_pixels(store, PreprocessedImage(image_id, key, frames, files, fingerprint=""))
        tile = (len(pixels) // 2 + number) % len(pixels)
        yield f"{image_id}/{frames.tiles[tile].tile_id}", pixels[tile]


def _pictures(folder: Path) -> Iterator[tuple[str, Pixels]]:
    paths: Iterable[Path] = sorted(
        path for path in folder.glob("*") if path.suffix.lower() in _PICTURES and path.is_file()
    )
    chosen = list(paths)[:N_TILES]
    if not chosen:
        raise ValueError(f"{folder}: expected pictures ({', '.join(sorted(_PICTURES))}) to compare on, found none")
    for path in chosen:
        data = np.fromfile(path, np.uint8)
        # OpenCV takes no data at all for a wrong call.
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
        if pixels is None:
            raise ValueError(f"{path}: expected a picture, found none that can be read; remove or replace it")
        yield path.name, np.asarray(pixels, np.uint8)
