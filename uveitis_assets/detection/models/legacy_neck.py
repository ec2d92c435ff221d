"""The earlier detectors' transformer backbone, for loading their checkpoints.

Its finest level is the map of stride 16 enlarged: it holds nothing that is finer, and small lesions suffer. New
detectors take ``feature_pyramid``.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.retfound import TransformerBackbone

LEGACY_STRIDES = (8, 16, 32, 64)
LEGACY_ANCHOR_SIZES = ((16.0,), (32.0,), (64.0,), (128.0,))


class LegacyTransformerBackbone(TransformerBackbone):
    """A vision transformer, one projection, and levels made by enlarging and pooling it."""

    # Rounded up to 32 as torchvision does by default, which the earlier detectors left alone.
    size_divisible = 32
    anchor_sizes = LEGACY_ANCHOR_SIZES

    def __init__(self, configuration: ModelConfiguration) -> None:
        super().__init__(configuration)
        channels = configuration.pyramid_channels
        self.out_channels = channels
        self.strides = self.roi_strides = LEGACY_STRIDES
        self.proj = nn.Conv2d(self.vit.embed_dim, channels, kernel_size=1)
        self.smooth = nn.ModuleDict(
            {name: nn.Conv2d(channels, channels, kernel_size=3, padding=1) for name in ("p2", "p3", "p4", "p5")}
        )

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images (B, 3, H, W) to level name -> (B, out_channels, H / stride, W / stride), strides 8 to 64."""
        projected = self.proj(self.patch_maps(images))
        halved = nn.functional.max_pool2d(projected, 2)
        maps = {
            "p2": nn.functional.interpolate(projected, scale_factor=2, mode="bilinear", align_corners=False),
            "p3": projected,
            "p4": halved,
            "p5": nn.functional.max_pool2d(halved, 2),
        }
        return OrderedDict((str(index), self.smooth[name](level)) for index, (name, level) in enumerate(maps.items()))
