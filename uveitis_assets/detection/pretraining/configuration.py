"""Configuration of an encoder's pretraining without labels; typed and range-checked.

Imports nothing heavy. Defaults are those of the masked autoencoder's paper and of the earlier command (50 epochs,
batches of 64).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uveitis_assets.configuration import Configuration, Owner


class EncoderPretrainingConfiguration(Configuration):
    """An encoder that learns to predict hidden patches of global images: the attributes of a defs.yaml."""

    name: str = Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=64, description="Lane name: key prefix, folder")
    description: str = Field("", description="One sentence about the encoder, shown in the UI")
    owners: tuple[Owner, ...] = Field(("team:imaging",), description="E-mail addresses or team:<name>")
    learn_from: tuple[str, ...] = Field(min_length=1, description="Fundus lanes whose global images are shown")
    encoder: Literal["vit_l16", "vit_b16", "tiny_p16"] = Field(
        "vit_l16", description="vit_l16 is RETFound's; tiny_p16 (64 px input) is for tests"
    )
    start_from: str | None = Field(
        None, description="RETFound file (root `model`) whose weights are continued; relative to $UVEITIS_DATA"
    )
    masked_share: float = Field(0.75, gt=0, lt=1, description="Share of patches that are hidden")
    smallest_crop: float = Field(0.2, gt=0, le=1, description="Smallest area of the random crop, share of the image")
    epochs: int = Field(50, ge=1, le=10_000, description="Passes over the images")
    batch_size: int = Field(64, ge=1, le=4096, description="Images per optimizer step")
    learning_rate: float = Field(1.5e-4, gt=0, le=1, description="Per 256 images of a batch")
    warmup_epochs: float = Field(5, ge=0, description="Linear warm-up of the learning rate; then half a cosine to 0")
    weight_decay: float = Field(0.05, ge=0, le=1, description="AdamW's; biases, norms and tokens do not decay")
    checkpoint_every_steps: int = Field(200, ge=1, description="Steps between checkpoints a kill falls back to")
    amp: Literal["auto", "bf16", "off"] = Field("auto", description="auto: bf16 on CUDA and on CPUs with AMX")
    seed: int = Field(42, description="Seed of weights, order, crops and masks")
