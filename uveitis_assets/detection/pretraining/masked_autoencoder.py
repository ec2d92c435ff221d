"""A masked autoencoder with a ViT encoder, whose encoder weights initialise a detector's backbone.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners": most patches are hidden, the encoder sees the rest,
a small decoder predicts the hidden ones, trained by the per-patch normalized squared error. Parameters are named as in
the RETFound files (root ``model``), so that their encoder and decoder weights can be loaded, and ours wherever theirs
can.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

# ImageNet's, as RETFound was trained with.
CHANNEL_MEAN = (0.485, 0.456, 0.406)
CHANNEL_STD = (0.229, 0.224, 0.225)
# timm takes any factory here; its annotation asks for a class.
_NORM = cast("type[nn.Module]", partial(nn.LayerNorm, eps=1e-6))


@dataclass(frozen=True, slots=True)
class MaskedAutoencoderShape:
    """Sizes of encoder and decoder; the defaults of ``large`` are RETFound's."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


SHAPES = {
    "vit_l16": MaskedAutoencoderShape(224, 16, 1024, 24, 16, 512, 8, 16),
    "vit_b16": MaskedAutoencoderShape(224, 16, 768, 12, 12, 512, 8, 16),
    "tiny_p16": MaskedAutoencoderShape(64, 16, 48, 2, 3, 32, 1, 2),
}


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder; ``forward`` gives the loss of a batch."""

    def __init__(self, shape: MaskedAutoencoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = PatchEmbed(shape.image_size, shape.patch_size, 3, shape.width)
        n_patches = self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, n_patches + 1, shape.width), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, 4.0, qkv_bias=True, norm_layer=_NORM) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.decoder_embed = nn.Linear(shape.width, shape.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.decoder_width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, n_patches + 1, shape.decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(shape.decoder_width, shape.decoder_heads, 4.0, qkv_bias=True, norm_layer=_NORM)
            for _ in range(shape.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(shape.decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(shape.decoder_width, shape.patch_size**2 * 3)
        self._initialise()

    def forward(self, images: Tensor, noise: Tensor, masked_share: float) -> Tensor:
        """Mean loss over the hidden patches.

        Args:
            images: float (B, 3, S, S), RGB, normalized by ``CHANNEL_MEAN`` and ``CHANNEL_STD``.
            noise: float (B, n_patches); the patches of the largest values are hidden, so that the caller decides.
            masked_share: share of patches that are hidden.
        """
        latent, hidden, restore = self.encode(images, noise, masked_share)
        return self.reconstruction_loss(images, self.decode(latent, restore), hidden)

    def encode(self, images: Tensor, noise: Tensor, masked_share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes the visible patches; returns their tokens, the mask of hidden ones and the restoring order.

        Tokens are (B, 1 + V, width), the mask (B, n), the order (B, n).
        """
        patches = self.patch_embed(images) + self.pos_embed[:, 1:]
        batch, n_patches, width = patches.shape
        n_visible = n_patches - round(n_patches * masked_share)
        order = noise.argsort(dim=1, stable=True)
        restore = order.argsort(dim=1, stable=True)
        visible = patches.gather(1, order[:, :n_visible, None].expand(-1, -1, width))
        hidden = (restore >= n_visible).to(images.dtype)
        tokens = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1), visible], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), hidden, restore

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Predicted patches (B, n_patches, patch² · 3)."""
        tokens = self.decoder_embed(latent)
        batch, n_seen, width = tokens.shape
        missing = self.mask_token.expand(batch, restore.shape[1] + 1 - n_seen, -1)
        patches = torch.cat([tokens[:, 1:], missing.to(tokens.dtype)], dim=1)
        patches = patches.gather(1, restore[:, :, None].expand(-1, -1, width))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        predicted: Tensor = self.decoder_pred(self.decoder_norm(tokens))[:, 1:]
        return predicted

    def reconstruction_loss(self, images: Tensor, predicted: Tensor, hidden: Tensor) -> Tensor:
        """Squared error against each patch normalized by its own mean and variance, over the hidden patches."""
        target = patches_of(images, self.shape.patch_size)
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        error = (predicted - (target - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
        return (error * hidden).sum() / hidden.sum()

    def encoder_state(self) -> dict[str, Tensor]:
        """The encoder's parameters, for a detector's backbone."""
        return {
            name: value.detach().cpu().contiguous()
            for name, value in self.state_dict().items()
            if not name.startswith(("decoder_", "mask_token"))
        }

    def _initialise(self) -> None:
        grid = self.patch_embed.grid_size[0]
        for name, width in (("pos_embed", self.shape.width), ("decoder_pos_embed", self.shape.decoder_width)):
            positions = torch.from_numpy(sine_cosine_positions(width, grid)).float()
            getattr(self, name).data.copy_(positions[None])
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.view(self.shape.width, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


def patches_of(images: Tensor, size: int) -> Tensor:
    """Cut (B, 3, S, S) into (B, n_patches, size² · 3), rows first, channels last inside a patch."""
    batch, channels, height, width = images.shape
    rows, columns = height // size, width // size
    cut = images.reshape(batch, channels, rows, size, columns, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, size * size * channels)


def sine_cosine_positions(width: int, grid: int) -> NDArray[np.float64]:
    """Fixed position embeddings (1 + grid², width) of a square grid of patches.

    The first row, of the class token, is zero. Half of the width encodes the column, half the row (the order of the
    official implementation).

    Raises:
        ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"expected a width that is a multiple of 4, found {width}")
    frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    halves = []
    for positions in (columns, rows):
        angles = np.outer(positions, frequencies)
        halves += [np.sin(angles), np.cos(angles)]
    return np.concatenate([np.zeros((1, width)), np.concatenate(halves, axis=1)])
