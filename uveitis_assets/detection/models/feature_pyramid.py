"""ViTDet's simple feature pyramid: several strides from a plain transformer's last map.

Unlike a feature pyramid network it has no top-down path: a plain ViT has one map only, at stride 16, and finer strides
are learned by transposed convolutions. Pyramids of convolutional networks are torchvision's and stand in ``backbones``.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

PATCH_STRIDE = 16
ROI_STRIDES = (4, 8, 16, 32)
TOP_LEVEL = "pool"


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of maps (B, C, H, W), each position on its own."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalize; the shape stays."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Maps of strides 4 (or 8) to 32 and a subsampled top level, from one map of stride 16.

    Levels are named as torchvision names them, "0" is the finest and "pool" the top level, which only proposes boxes.
    Source: Li, Mao, Girshick and He, "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022.
    """

    def __init__(self, in_channels: int, out_channels: int, finest_stride: int) -> None:
        super().__init__()
        strides = tuple(stride for stride in ROI_STRIDES if stride >= finest_stride)
        self.out_channels = out_channels
        self.roi_strides = strides
        self.strides = (*strides, 2 * strides[-1])
        self.levels = nn.ModuleDict(
            {str(index): _level(in_channels, out_channels, stride) for index, stride in enumerate(strides)}
        )

    def forward(self, maps: Tensor) -> OrderedDict[str, Tensor]:
        """Maps (B, in_channels, H / 16, W / 16) to level name -> (B, out_channels, H / stride, W / stride)."""
        levels = OrderedDict((name, level(maps)) for name, level in self.levels.items())
        coarsest = next(reversed(levels.values()))
        levels[TOP_LEVEL] = nn.functional.max_pool2d(coarsest, kernel_size=1, stride=2)
        return levels


def _level(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module]
    width = in_channels
    if stride == 4:
        layers = [
            nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2),
            ChannelLayerNorm(in_channels // 2, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(in_channels // 2, in_channels // 4, kernel_size=2, stride=2),
        ]
        width = in_channels // 4
    elif stride == 8:
        layers = [nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)]
        width = in_channels // 2
    elif stride == PATCH_STRIDE:
        layers = []
    else:
        # Odd maps keep their last row and column: their pixels would be seen by no coarse level otherwise.
        layers = [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)]
    # A norm follows: a bias would be subtracted again.
    layers += [
        nn.Conv2d(width, out_channels, kernel_size=1, bias=False),
        ChannelLayerNorm(out_channels, eps=1e-6),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        ChannelLayerNorm(out_channels, eps=1e-6),
    ]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        elif isinstance(layer, nn.ConvTranspose2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
