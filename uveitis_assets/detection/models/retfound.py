"""RETFound's vision transformers as backbones, at any input size that is a multiple of the patch.

The transformer is timm's, under the name ``vit``, so that parameter names are those of RETFound's files and of the
earlier detectors. Pyramids are in ``feature_pyramid``, the earlier detectors' neck in ``legacy_neck``.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers.mlp import GluMlp, Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.backbones import Backbone
from uveitis_assets.detection.models.feature_pyramid import PATCH_STRIDE, SimpleFeaturePyramid

_LAYER_SCALE_START = 1e-5


class TransformerShape(NamedTuple):
    """Width, number of blocks and of attention heads."""

    width: int
    depth: int
    heads: int


TRANSFORMER_SHAPES = {
    "retfound_vit_l16": TransformerShape(width=1024, depth=24, heads=16),
    "retfound_vit_b16": TransformerShape(width=768, depth=12, heads=12),
}


class TransformerBackbone(Backbone):
    """A vision transformer whose last map, stride 16, a subclass's neck turns into levels."""

    size_divisible = PATCH_STRIDE

    def __init__(self, configuration: ModelConfiguration) -> None:
        super().__init__()
        self.vit = vision_transformer(configuration)
        self._recompute = configuration.recompute_activations

    def patch_maps(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) to the normed last block's maps (B, width, H / 16, W / 16).

        Images smaller than the input size, as batches of small tiles are, take the upper left part of the position
        embeddings: a patch keeps its size and its place.
        """
        vit = self.vit
        patches = vit.patch_embed.proj(images)
        height, width = patches.shape[-2:]
        side = vit.patch_embed.grid_size[0]
        if height > side or width > side:
            raise ValueError(
                f"expected images of at most {side * PATCH_STRIDE} x {side * PATCH_STRIDE} px, found "
                f"{images.shape[-1]} x {images.shape[-2]}; tiles are brought to input_size before"
            )
        class_place, places = vit.pos_embed[:, :1], vit.pos_embed[:, 1:]
        places = places.unflatten(1, (side, side))[:, :height, :width].flatten(1, 2)
        tokens = patches.flatten(2).transpose(1, 2) + places
        tokens = torch.cat([(vit.cls_token + class_place).expand(len(tokens), -1, -1), tokens], dim=1)
        for block in vit.blocks:
            if self._recompute and torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters()):
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        maps: Tensor = vit.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, (height, width))
        return maps

    def freezable_parts(self) -> list[list[nn.Module | nn.Parameter]]:
        """Patch, class and position embedding, then every block; final norm and neck are never frozen.

        The earlier detectors went on training class and position embeddings below frozen blocks: that keeps the
        activations of every frozen block in memory.
        """
        vit = self.vit
        return [[vit.patch_embed, vit.cls_token, vit.pos_embed], *([block] for block in vit.blocks)]


class PyramidTransformerBackbone(TransformerBackbone):
    """A vision transformer with ViTDet's simple feature pyramid."""

    def __init__(self, configuration: ModelConfiguration) -> None:
        super().__init__(configuration)
        self.pyramid = SimpleFeaturePyramid(
            self.vit.embed_dim, configuration.pyramid_channels, configuration.finest_stride
        )
        self.out_channels = configuration.pyramid_channels
        self.strides, self.roi_strides = self.pyramid.strides, self.pyramid.roi_strides

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images (B, 3, H, W) to level name -> (B, out_channels, H / stride, W / stride)."""
        levels: OrderedDict[str, Tensor] = self.pyramid(self.patch_maps(images))
        return levels


def vision_transformer(configuration: ModelConfiguration) -> Any:
    """timm's vision transformer of RETFound's shape with random weights, without a head.

    Raises:
        ValueError: the input size is not a multiple of the patch.
    """
    if configuration.input_size % PATCH_STRIDE:
        raise ValueError(
            f"input_size: expected a multiple of {PATCH_STRIDE} px for {configuration.backbone}, found "
            f"{configuration.input_size}"
        )
    shape = TRANSFORMER_SHAPES[configuration.backbone]
    swiglu = configuration.vit_mlp == "swiglu"
    return VisionTransformer(
        img_size=configuration.input_size,
        patch_size=PATCH_STRIDE,
        num_classes=0,
        global_pool="",
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        # A gated MLP of DINOv2 has two thirds of the width, made a multiple of 8, twice: once for the gate.
        mlp_ratio=(2 * swiglu_width(shape.width) + 0.5) / shape.width if swiglu else 4,
        mlp_layer=_GatedMlp if swiglu else Mlp,
        act_layer=nn.SiLU if swiglu else nn.GELU,
        init_values=_LAYER_SCALE_START if configuration.vit_layer_scale else None,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


class _GatedMlp(GluMlp):
    """DINOv2's: the first half of ``fc1`` (its ``w12``) passes the activation and gates the second half."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "gate_last": False})


def swiglu_width(width: int) -> int:
    """Inner width of DINOv2's gated MLP (``w3``'s columns) in a transformer of the given width."""
    return (int(4 * width * 2 / 3) + 7) // 8 * 8


def resized_position_embedding(embedding: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + G², width) resized to ``side`` x ``side`` patches, as RETFound does.

    The class token's embedding stays as it is.

    Raises:
        ValueError: the embedding is not that of a class token and a square grid.
    """
    n_patches = embedding.shape[1] - 1
    grid = round(n_patches**0.5)
    if embedding.ndim != 3 or grid < 1 or grid * grid != n_patches:
        raise ValueError(
            f"pos_embed: expected a class token and a square grid (1, 1 + G², width), found {tuple(embedding.shape)}"
        )
    if grid == side:
        return embedding
    maps = embedding[:, 1:].float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    maps = nn.functional.interpolate(maps, size=(side, side), mode="bicubic", align_corners=False)
    patches = maps.flatten(2).transpose(1, 2).to(embedding.dtype)
    return torch.cat([embedding[:, :1], patches], dim=1)
