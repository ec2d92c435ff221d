"""Continue the pretraining of an encoder on global images without labels, by a masked autoencoder.

Images of the test split are never shown. What an image looks like in an epoch depends on seed, epoch and image alone,
so that a killed training that is continued ends with the weights of one that was not (on the CPU bit by bit).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage, read_preprocessed_images
from uveitis_assets.detection.data.tile_files import read_global_image
from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.detection.pretraining.masked_autoencoder import CHANNEL_MEAN, CHANNEL_STD, SHAPES, MaskedAutoencoder
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.storage.files import remove_half_files, write_bytes, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import uses_bfloat16
from uveitis_assets.training.learning_rate import learning_rate
from uveitis_assets.training.run_folder import read_state_file
from uveitis_assets.training.weights_files import file_digest, read_weights_file
from uveitis_assets.training.weights_loading import load_matching_weights

_LEAST_MATCHED = 0.9
_PREFETCHED_BATCHES = 2


@dataclass(frozen=True, slots=True)
class PretrainingOutcome:
    """What a pretraining ended with; ``losses`` is the mean loss of each epoch."""

    encoder: Path
    n_images: int
    n_held_out: int
    n_steps: int
    losses: tuple[float, ...]
    started_from: str


@dataclass(frozen=True, slots=True)
class _Training:
    """What stays the same over a pretraining; model and optimizer hold its progress."""

    configuration: EncoderPretrainingConfiguration
    images: Sequence[PreprocessedImage]
    folder: Path
    fingerprint: str
    started_from: str
    model: MaskedAutoencoder
    optimizer: torch.optim.Optimizer
    device: str

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.images) / self.configuration.batch_size)

    @property
    def n_steps(self) -> int:
        return self.configuration.epochs * self.steps_per_epoch


@dataclass(frozen=True, slots=True)
class _Position:
    """Steps taken, losses of the epochs before, and the sum of this one's."""

    epoch: int
    step: int
    losses: tuple[float, ...]
    loss_sum: float


def pretrain_encoder(
    store: ArtefactStore,
    configuration: EncoderPretrainingConfiguration,
    *,
    device: str,
    log: Callable[[str], None],
    threads: int = 2,
) -> PretrainingOutcome:
    """Train, or continue where a killed run stopped, and write ``pretrain_runs/<name>/encoder.safetensors``.

    A folder of another configuration, start file or of other images is started anew; its encoder stays until the new
    one is done.

    Args:
        store: global images in, run folder out.
        configuration: lanes, sizes and optimization.
        device: ``cpu`` or ``cuda``.
        log: takes one line per epoch.
        threads: that read images ahead.

    Raises:
        FileNotFoundError: the file to start from is not there.
        ValueError: no usable image, or the file to start from does not fit.
    """
    # A second pretraining of the same folder waits, and then finds it finished.
    with store.lock(f"pretraining_{configuration.name}"):
        remove_half_files(store.pretraining_folder(configuration.name))
        return _pretrain(store, configuration, device=device, log=log, threads=threads)


def _pretrain(
    store: ArtefactStore,
    configuration: EncoderPretrainingConfiguration,
    *,
    device: str,
    log: Callable[[str], None],
    threads: int,
) -> PretrainingOutcome:
    images, n_held_out = _images(store, configuration)
    training = _new_training(store, configuration, images, device)
    position = _resume(training) or _Position(0, 0, (), 0.0)
    if position.step or position.epoch:
        log(f"continuing at epoch {position.epoch + 1}, step {position.step + 1} of {training.steps_per_epoch}")
    while position.epoch < configuration.epochs:
        position = _finish_epoch(store, training, position, threads)
        _save_state(training, position)
        log(f"epoch {position.epoch} of {configuration.epochs}: loss {position.losses[-1]:.4f}")
    return PretrainingOutcome(
        _write_encoder(training, position.losses),
        len(images),
        n_held_out,
        training.n_steps,
        position.losses,
        training.started_from,
    )


def _new_training(
    store: ArtefactStore,
    configuration: EncoderPretrainingConfiguration,
    images: Sequence[PreprocessedImage],
    device: str,
) -> _Training:
    torch.manual_seed(configuration.seed)
    model = MaskedAutoencoder(SHAPES[configuration.encoder])
    started_from = "random weights"
    if configuration.start_from is not None:
        started_from = _load_start(model, store.root / configuration.start_from)
    model.to(device).train()
    optimizer = torch.optim.AdamW(_parameter_groups(model, configuration.weight_decay), betas=(0.9, 0.95))
    return _Training(
        configuration,
        images,
        folder=store.pretraining_folder(configuration.name),
        fingerprint=_fingerprint(configuration, images),
        started_from=started_from,
        model=model,
        optimizer=optimizer,
        device=device,
    )


def _finish_epoch(store: ArtefactStore, training: _Training, position: _Position, threads: int) -> _Position:
    """Take the epoch's remaining steps; returns the beginning of the next one."""
    every = training.configuration.checkpoint_every_steps
    for pixels, noise in _batches(store, training, position, threads):
        loss_sum = position.loss_sum + _take_step(training, position, pixels, noise)
        position = _Position(position.epoch, position.step + 1, position.losses, loss_sum)
        if (position.epoch * training.steps_per_epoch + position.step) % every == 0:
            _save_state(training, position)
    losses = (*position.losses, position.loss_sum / training.steps_per_epoch)
    return _Position(position.epoch + 1, 0, losses, 0.0)


def _take_step(training: _Training, position: _Position, pixels: torch.Tensor, noise: torch.Tensor) -> float:
    """One step of the optimizer; returns the loss before it."""
    configuration, device = training.configuration, training.device
    rate = learning_rate(
        position.epoch * training.steps_per_epoch + position.step,
        n_steps=training.n_steps,
        warmup_steps=round(configuration.warmup_epochs * training.steps_per_epoch),
        peak=configuration.learning_rate * configuration.batch_size / 256,
        lowest=0.0,
    )
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    half = uses_bfloat16(configuration.amp, device)
    with torch.autocast(device.split(":", maxsplit=1)[0], dtype=torch.bfloat16, enabled=half):
        loss = training.model(pixels.to(device), noise.to(device), configuration.masked_share)
    if not torch.isfinite(loss):
        where = f"epoch {position.epoch + 1}, step {position.step + 1}"
        raise ValueError(f"{configuration.name}: loss {loss.item()} at {where}; lower learning_rate")
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    training.optimizer.step()
    return float(loss.item())


def _write_encoder(training: _Training, losses: tuple[float, ...]) -> Path:
    """The encoder's weights, and their lineage beside them."""
    encoder = training.folder / "encoder.safetensors"
    lineage = {
        "encoder": training.configuration.encoder,
        "configuration": training.configuration.model_dump(mode="json"),
        "images": training.fingerprint,
        "n_images": len(training.images),
        "started_from": training.started_from,
        "losses": [round(loss, 6) for loss in losses],
    }
    write_bytes(encoder, save(training.model.encoder_state()))
    write_json(encoder.with_suffix(".json"), lineage)
    return encoder


def _images(
    store: ArtefactStore, configuration: EncoderPretrainingConfiguration
) -> tuple[list[PreprocessedImage], int]:
    """Images that may be shown, and how many are held out because they are test images in some fold."""
    found: list[PreprocessedImage] = []
    test_images: set[str] = set()
    for lane in configuration.learn_from:
        for batch in store.indexed_batches(lane, "tiles"):
            found += read_preprocessed_images(store, lane, batch)
        rows = read_manifest(store, lane).select("image_id", "fold_splits").iter_rows()
        test_images |= {image_id for image_id, sides in rows if "test" in sides}
    shown = [image for image in found if image.image_id not in test_images]
    if not shown:
        raise ValueError(
            f"{configuration.name}: found no image with tiles outside test in {', '.join(configuration.learn_from)}; "
            "materialize their tiles first"
        )
    return shown, len(found) - len(shown)


def _fingerprint(configuration: EncoderPretrainingConfiguration, images: Sequence[PreprocessedImage]) -> str:
    settings = configuration.model_dump_json(exclude={"description", "owners", "checkpoint_every_steps"})
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for image in images:
        digest.update(f"\n{image.image_id} {image.fingerprint}".encode())
    return digest.hexdigest()


def _load_start(model: MaskedAutoencoder, path: Path) -> str:
    """Load a masked autoencoder's file, as RETFound's are, into encoder and decoder; returns what was taken.

    Only the encoder has to be in it: RETFound publishes files with and without the decoder.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsMismatchError: the file provides too little of the encoder.
        ValueError: the file is damaged, holds code, or is of another kind of training.
    """
    file = read_weights_file(path)
    if file.root not in ("model", ""):
        # DINOv2's blocks have the same names and scale their branches besides: they would fit and mean something else.
        raise ValueError(
            f"{path}: expected a masked autoencoder's weights (root `model`, or nothing but tensors), found the root "
            f"`{file.root}`; take the MAE file"
        )
    encoder = [name for name in model.state_dict() if not name.startswith(("decoder_", "mask_token"))]
    report = load_matching_weights(model, file.tensors, file=path, min_matched=_LEAST_MATCHED, wanted=encoder)
    return f"{path.name} ({file_digest(path)}), {len(report.matched)} of {len(model.state_dict())} tensors"


def _parameter_groups(model: MaskedAutoencoder, weight_decay: float) -> list[dict[str, Any]]:
    """No weight decay on vectors: biases, norms, tokens."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = [parameter for parameter in trained if parameter.ndim <= 1 or parameter.shape[:2] == (1, 1)]
    held = {id(parameter) for parameter in flat}
    return [
        {"params": [parameter for parameter in trained if id(parameter) not in held], "weight_decay": weight_decay},
        {"params": flat, "weight_decay": 0.0},
    ]


def _batches(
    store: ArtefactStore, training: _Training, position: _Position, threads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The rest of the epoch's batches: pixels (B, 3, S, S) and noise (B, n_patches)."""
    configuration, images = training.configuration, training.images
    order = np.random.default_rng((configuration.seed, position.epoch)).permutation(len(images))
    size = configuration.batch_size
    groups = [order[start : start + size] for start in range(0, len(order), size)][position.step :]
    n_patches = training.model.patch_embed.num_patches
    side = training.model.shape.image_size

    def sample(number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rng = np.random.default_rng((configuration.seed, position.epoch, int(number)))
        view = _random_view(read_global_image(store, images[number]), rng, side, configuration.smallest_crop)
        return view, rng.random(n_patches, dtype=np.float32)

    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(groups)
        pending = [[pool.submit(sample, n) for n in group] for group in islice(waiting, _PREFETCHED_BATCHES)]
        while pending:
            drawn = [future.result() for future in pending.pop(0)]
            pending += [[pool.submit(sample, n) for n in group] for group in islice(waiting, 1)]
            yield (
                torch.from_numpy(np.stack([view for view, _ in drawn])),
                torch.from_numpy(np.stack([noise for _, noise in drawn])),
            )


def _random_view(
    pixels: NDArray[np.uint8], rng: np.random.Generator, side: int, smallest_crop: float
) -> NDArray[np.float32]:
    """Random crop of 3:4 to 4:3, resized and perhaps mirrored; float32 (3, side, side), normalized channels."""
    height, width = pixels.shape[:2]
    area = height * width * rng.uniform(smallest_crop, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
    crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
    x = int(rng.integers(0, width - crop_width + 1))
    y = int(rng.integers(0, height - crop_height + 1))
    crop = pixels[y : y + crop_height, x : x + crop_width]
    shrinks = crop_width >= side and crop_height >= side
    view = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        view = view[:, ::-1]
    normalized = (view.astype(np.float32) / 255.0 - np.array(CHANNEL_MEAN, np.float32)) / np.array(
        CHANNEL_STD, np.float32
    )
    return np.ascontiguousarray(normalized.transpose(2, 0, 1))


def _save_state(training: _Training, position: _Position) -> None:
    """What a killed training is continued from; safe to load (tensors and plain values)."""
    state = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "position": json.dumps(
            {
                "epoch": position.epoch,
                "step": position.step,
                "losses": position.losses,
                "loss_sum": position.loss_sum,
                "fingerprint": training.fingerprint,
                "started_from": training.started_from,
            }
        ),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(training.folder / "last.pth", buffer.getbuffer())


def _resume(training: _Training) -> _Position | None:
    """Load the state of a training of the same configuration, start file and images, where there is one."""
    state = read_state_file(training.folder / "last.pth", device=training.device)
    if state is None:
        return None
    saved = json.loads(state["position"])
    # States of the time before they told what they started from are continued.
    started_from = saved.get("started_from", training.started_from)
    if saved["fingerprint"] != training.fingerprint or started_from != training.started_from:
        return None
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    return _Position(saved["epoch"], saved["step"], tuple(saved["losses"]), saved["loss_sum"])
