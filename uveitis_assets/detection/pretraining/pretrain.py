"""Continues the pretraining of an encoder on global images without labels, by a masked autoencoder.

Images of the test split are never shown. A killed training that is continued ends with the weights of one that was not
(on the CPU bit by bit).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.detection.pretraining.encoder_task import EncoderTask, images_to_show
from uveitis_assets.detection.pretraining.masked_autoencoder import MaskedAutoencoder
from uveitis_assets.storage.files import remove_half_files, write_bytes, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.distributed import gathered, process_rank
from uveitis_assets.training.loop import TrainingLoop
from uveitis_assets.training.progress import CompositeListener, NullListener, TrainingListener
from uveitis_assets.training.run_folder import read_state_file, write_state_file
from uveitis_assets.training.state import TrainerPosition, TrainingState


@dataclass(frozen=True, slots=True)
class PretrainingOutcome:
    """What a pretraining ended with; ``losses`` is the mean loss of each epoch."""

    encoder: Path
    n_images: int
    n_held_out: int
    n_steps: int
    losses: tuple[float, ...]
    started_from: str


def pretrain_encoder(
    store: ArtefactStore,
    configuration: EncoderPretrainingConfiguration,
    *,
    device: str,
    log: Callable[[str], None],
    threads: int = 2,
    listener: TrainingListener | None = None,
) -> PretrainingOutcome:
    """Trains an encoder, or continues where a killed run stopped, and writes its weights.

    The weights are ``pretrain_runs/<name>/encoder.safetensors``. A folder of another configuration, start file or of
    other images is started anew; its encoder stays until the new one is done. Several processes of one torch process
    group train together when each calls this.

    Args:
        store: global images in, run folder out.
        configuration: lanes, sizes and optimization.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        log: takes one line per epoch.
        threads: that read images ahead.
        listener: hears of steps and epochs too.

    Raises:
        FileNotFoundError: the file to start from is not there.
        NonFiniteLossError: the loss became NaN or infinite; names epoch, step and images.
        ValueError: no usable image, the file to start from does not fit, or the state is damaged.
    """
    folder = store.pretraining_folder(configuration.name)
    # A second pretraining of the same folder waits, and then finds it finished.
    with store.lock(f"pretraining_{configuration.name}") if process_rank() == 0 else nullcontext():
        if process_rank() == 0:
            remove_half_files(folder)
        # No process looks for a state before rank 0 has the folder for itself.
        gathered(None)
        images, n_held_out = images_to_show(store, configuration)
        task = EncoderTask(store, configuration, images, device=device, threads=threads)
        loop = TrainingLoop.open(
            task,
            task.loop_options(),
            states=_StateFile(folder / "last.pth", task, device),
            weights=None,
            device=torch.device(device),
            listener=CompositeListener([_EpochLines(log, configuration.epochs), listener or NullListener()]),
            began=time.monotonic(),
        )
        loop.run()
        losses = _losses(loop.state.position)
        encoder = _write_encoder(folder, configuration, task, loop.state.model, losses)
        gathered(None)
    return PretrainingOutcome(encoder, len(images), n_held_out, loop.n_steps, losses, task.started_from)


def _losses(position: TrainerPosition) -> tuple[float, ...]:
    return tuple(row["train_loss"] for row in position.rows)


def _write_encoder(
    folder: Path,
    configuration: EncoderPretrainingConfiguration,
    task: EncoderTask,
    model: nn.Module,
    losses: tuple[float, ...],
) -> Path:
    """The encoder's weights, and their lineage beside them."""
    assert isinstance(model, MaskedAutoencoder)
    encoder = folder / "encoder.safetensors"
    lineage = {
        "encoder": configuration.encoder,
        "configuration": configuration.model_dump(mode="json"),
        "images": task.fingerprint,
        "n_images": len(task.images),
        "started_from": task.started_from,
        "losses": [round(loss, 6) for loss in losses],
    }
    if process_rank() == 0:
        write_bytes(encoder, save(model.encoder_state()))
        write_json(encoder.with_suffix(".json"), lineage)
    return encoder


@dataclass(frozen=True, slots=True)
class _StateFile:
    """``last.pth`` of a pretraining: model, optimizer, and the position as JSON with the identity.

    Nothing draws from the process's own random generators, so that it holds none of their states.
    """

    path: Path
    task: EncoderTask
    device: str

    def read(self) -> dict[str, Any] | None:
        """The state of a training of the same configuration, start file and images, where there is one."""
        state = read_state_file(self.path, device=self.device)
        if state is None:
            return None
        identity = self.task.identity()
        # States of the time before they told what they started from are continued.
        saved = {"started_from": identity["started_from"], **json.loads(state["position"])}
        return state if {name: saved[name] for name in identity} == identity else None

    def restore(self, state: TrainingState, saved: Mapping[str, Any]) -> None:
        """See ``States``."""
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        position = json.loads(saved["position"])
        epoch, batch = position["epoch"], position["step"]
        state.position = TrainerPosition(
            epoch=epoch,
            batch=batch,
            step=epoch * self.task.batches_per_epoch + batch,
            micro_batch=state.position.micro_batch,
            loss_sums={"loss": position["loss_sum"]} if batch else {},
            rows=[{"epoch": number, "train_loss": loss} for number, loss in enumerate(position["losses"], start=1)],
        )

    def save(self, state: TrainingState) -> None:
        """See ``States``."""
        if process_rank() != 0:
            return
        position = {
            "epoch": state.position.epoch,
            "step": state.position.batch,
            "losses": _losses(state.position),
            "loss_sum": state.position.loss_sums.get("loss", 0.0),
            **self.task.identity(),
        }
        values = {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "position": json.dumps(position),
        }
        write_state_file(self.path, values)


class _EpochLines(NullListener):
    """Passes a pretraining's epochs and messages on as lines."""

    def __init__(self, log: Callable[[str], None], n_epochs: int) -> None:
        self._log = log
        self._n_epochs = n_epochs

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """One line per epoch."""
        self._log(f"epoch {row['epoch']} of {self._n_epochs}: loss {row['train_loss']:.4f}")

    def on_message(self, message: str) -> None:
        """Something a person should know."""
        self._log(message)
