"""Configuration of an optimization: epochs, learning rate, averaging, states to continue from.

Imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from uveitis_assets.configuration import Configuration

if TYPE_CHECKING:
    from uveitis_assets.training.loop import LoopOptions


class TrainingConfiguration(Configuration):
    """Optimization."""

    epochs: int = Field(40, ge=1, le=10_000, description="Passes over the tiles that `sampling` draws, at most")
    batch_size: int = Field(2, ge=1, le=1024, description="Tiles per optimizer step and process")
    learning_rate: float = Field(2e-5, gt=0, le=1, description="Highest rate of AdamW, reached after the warm-up")
    min_learning_rate: float = Field(1e-6, ge=0, le=1, description="Rate of the last step; a half cosine leads there")
    warmup_steps: int = Field(200, ge=0, description="Linear warm-up, optimizer steps")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW's; norms, biases and embeddings do not decay")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor on the learning rate per backbone block from the top"
    )
    gradient_clip_norm: float = Field(1.0, gt=0, description="Longer gradients are shortened to this norm")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Decay per step of the averaged weights; 0 turns it off")
    freeze_blocks: int = Field(
        20,
        ge=0,
        description="Blocks (ViT: 24 or 12) or stages (ResNet: 4) that start frozen, with the stem; more than the "
        "backbone has is an error",
    )
    freeze_epochs: int = Field(10, ge=0, description="Epochs in which all of freeze_blocks stay frozen")
    unfreeze_blocks_per_epoch: int = Field(4, ge=0, description="Blocks unfrozen per epoch, last first; 0: all at once")
    amp: Literal["auto", "bf16", "off"] = Field("auto", description="auto: bf16 on CUDA and on CPUs with AMX")
    channels_last: bool = Field(
        False, description="On a GPU keep a backbone's maps with their channels last, which is faster in bf16"
    )
    compile: bool = Field(False, description="On a GPU compile the backbone (torch.compile); costs minutes once")
    seed: int = Field(42, ge=0, description="Seed of weights, order, draws and augmentation")
    patience: int = Field(10, ge=0, description="Epochs without a better AP before training stops; 0: never stops")
    evaluate_every: int = Field(1, ge=1, description="Epochs between evaluations")
    save_every_epochs: int = Field(0, ge=0, description="Keep checkpoints/epoch_<n> every so many epochs; 0: never")
    checkpoint_every_steps: int = Field(
        0, ge=0, description="Optimizer steps between states to continue from within an epoch; 0: by minutes alone"
    )
    checkpoint_every_minutes: float = Field(10.0, gt=0, description="Minutes between states within an epoch")
    loader_workers: int = Field(4, ge=0, le=64, description="Processes that read tiles ahead of a GPU; none on the CPU")
    tile_cache_gb: float = Field(
        64.0, ge=0, description="Largest size of $UVEITIS_DATA/cache/tiles, GiB; 0: decode the PNG files in every epoch"
    )
    tensorboard: bool = Field(True, description="Log to tb/ in the run's folder")
    wandb_project: str | None = Field(None, description="Log to W&B; needs $UVEITIS_WANDB_KEY_FILE")

    def loop_options(self) -> LoopOptions:
        """These settings as the training loop takes them."""
        from uveitis_assets.training.loop import LoopOptions
        from uveitis_assets.training.step import StepOptions

        return LoopOptions(
            epochs=self.epochs,
            seed=self.seed,
            step=StepOptions(
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                min_learning_rate=self.min_learning_rate,
                warmup_steps=self.warmup_steps,
                gradient_clip_norm=self.gradient_clip_norm,
                ema_decay=self.ema_decay,
            ),
            patience=self.patience,
            evaluate_every=self.evaluate_every,
            save_every_epochs=self.save_every_epochs,
            checkpoint_every_steps=self.checkpoint_every_steps,
            checkpoint_every_minutes=self.checkpoint_every_minutes,
        )
