"""From tiles to detections in tile px: equal tiles in batches, halved when memory is short.

How results depend on the batch. Convolutions and matrix products choose their order of summation by the shape of the
whole batch, so the same tile in another batch differs in the last bits. Three rules keep results the same all the
same: tiles are brought to the network's input size one by one, as in training, and where a network takes any size only
tiles of equal size share a pass, because a larger neighbour would pad them; on the CPU, where a batch
saves next to nothing, ``tiles_per_pass`` gives every tile a pass of its own, which is equal to the bit; and boxes and
scores are rounded to a grid (1/64 px, 0.0001) far coarser than that noise and far finer than any label, before
anything compares them. On a GPU a value within the noise of a grid line can still fall to either side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uveitis_assets.detection.data.letterbox import fit_to_input
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.imaging.geometry import AxisAlignedTransform

Tile = NDArray[np.uint8]

BOX_STEPS_PER_PX = 64
SCORE_DECIMALS = 4


def tiles_per_pass(device: torch.device | str, batch_size: int) -> int:
    """Tiles per forward pass: the batch size on accelerators, 1 on the CPU (see the module's docstring)."""
    return 1 if torch.device(device).type == "cpu" else batch_size


def detect_tiles(
    model: torch.nn.Module,
    tiles: Sequence[Tile],
    *,
    batch_size: int,
    device: torch.device | str,
    amp: bool,
) -> list[Detections]:
    """Run one detector over tiles, of one image or of many.

    The model is left in the mode (training or evaluation) that it came in.

    Args:
        model: torchvision's detection interface, already on ``device``; may add ``corners`` to its results. One that
            resizes to ``transform.max_size`` gets tiles of that size.
        tiles: uint8 RGB arrays of shape (H, W, 3); sizes may differ.
        batch_size: tiles per forward pass; halved, down to 1, for the rest of the call when memory runs out.
        device: where the model is.
        amp: mixed precision: bfloat16, or float16 on GPUs without it.

    Returns:
        Detections of every tile, in the order of ``tiles``, in the tile's pixels, rounded as in the module's docstring.

    Raises:
        ValueError: a tile is not uint8 (H, W, 3) or has no pixels; the model returned NaN or infinite values.
        torch.OutOfMemoryError: a single tile does not fit.
    """
    for number, tile in enumerate(tiles):
        if tile.dtype != np.uint8 or tile.ndim != 3 or tile.shape[2] != 3 or tile.size == 0:
            raise ValueError(f"tile {number}: expected uint8 of shape (H, W, 3), found {tile.dtype} {tile.shape}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    input_size = _input_size(model)
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, tile in enumerate(tiles):
        by_shape[tile.shape if input_size is None else (input_size,)].append(number)
    device = torch.device(device)
    results: dict[int, Detections] = {}
    with _evaluating(model), torch.inference_mode(), _mixed_precision(device, amp):
        for numbers in by_shape.values():
            start = 0
            while start < len(numbers):
                chunk = numbers[start : start + batch_size]
                found = _one_pass(model, [tiles[number] for number in chunk], input_size, device)
                if found is None:
                    batch_size = max(1, len(chunk) // 2)
                    continue
                results.update(zip(chunk, found, strict=True))
                start += len(chunk)
    return [results[number] for number in range(len(tiles))]


def _input_size(model: torch.nn.Module) -> int | None:
    """Side of the images that the network works on, px; None for one that takes them as they are."""
    transform = getattr(model, "transform", None)
    return None if transform is None else int(transform.max_size)


def _one_pass(
    model: torch.nn.Module, tiles: Sequence[Tile], input_size: int | None, device: torch.device
) -> list[Detections] | None:
    """Detections of one batch; None when more than one tile did not fit into memory together."""
    fitted = [
        (tile, AxisAlignedTransform()) if input_size is None else fit_to_input(tile, input_size) for tile in tiles
    ]
    try:
        stacked = torch.from_numpy(np.stack([pixels for pixels, _ in fitted])).to(device, non_blocking=True)
        images = stacked.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
        outputs = model(list(images))
        return [
            _detections(output, to_input.inverse(), tile)
            for output, (_, to_input), tile in zip(outputs, fitted, tiles, strict=True)
        ]
    except torch.OutOfMemoryError:
        if len(tiles) == 1:
            raise
    # Outside the handler: the exception's traceback would keep the pass's tensors alive.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _detections(output: dict[str, torch.Tensor], to_tile: AxisAlignedTransform, tile: Tile) -> Detections:
    columns: dict[str, NDArray[Any]] = {
        name: output[name].detach().to("cpu", torch.float64).numpy()
        for name in ("boxes", "scores", "corners")
        if name in output
    }
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"the detector's {name}: expected finite values, found NaN or infinity; the weights are damaged or "
                "the training diverged"
            )
    corners = columns.get("corners")
    height, width = tile.shape[:2]
    boxes = np.clip(to_tile.apply_boxes(columns["boxes"]), 0.0, (width, height, width, height))
    found = Detections(
        boxes=_on_grid(boxes),
        scores=np.round(columns["scores"], SCORE_DECIMALS).astype(np.float32),
        labels=output["labels"].detach().to("cpu", torch.int64).numpy(),
        corners=None if corners is None else _on_grid(to_tile.apply(corners)),
    )
    # What was found in the padding alone shows nothing of the tile.
    return found.select(np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1)))


def _on_grid(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.round(values * BOX_STEPS_PER_PX) / BOX_STEPS_PER_PX).astype(np.float32)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode and every part of it back into its own afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _mixed_precision(device: torch.device, amp: bool) -> Iterator[None]:
    half = torch.bfloat16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        half = torch.float16
    with torch.autocast(device.type, dtype=half, enabled=amp):
        yield
