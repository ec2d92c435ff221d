"""Convolutional backbones with a feature pyramid network: torchvision's ResNet-50 and any of timm's.

A backbone maps normalized images (B, 3, H, W) to an ordered dict of maps, finest first; it has ``out_channels``,
the ``strides`` of its maps and, stem first, its ``freezable_parts``. Transformers are in ``retfound``; weights are
loaded in ``checkpoints``, nothing here downloads any.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from uveitis_assets.detection.model_configuration import IMAGENET_MEAN, IMAGENET_STD, ModelConfiguration
from uveitis_assets.detection.models.feature_pyramid import ROI_STRIDES

_STAGE = re.compile(r"^(layer|stages|blocks|features|features_denseblock|s)[._]?\d+$")
_CONTAINERS = ("stages", "blocks", "features")
_LARGEST_GROUP_COUNT = 32


class Backbone(nn.Module, ABC):
    """What every backbone of the detectors offers.

    ``strides`` are those of all its maps, ``roi_strides`` those from which regions are pooled (a top level only
    proposes boxes); images are padded to a multiple of ``size_divisible`` px. ``anchor_sizes`` are set where a backbone
    has learned with its own. ``freezable_parts`` are lists of modules and parameters: the stem, then block by block.
    The first ``n_frozen_parts`` of them stay in evaluation mode while the rest trains, so that running statistics of
    frozen parts do not move.
    """

    out_channels: int
    strides: tuple[int, ...]
    roi_strides: tuple[int, ...]
    size_divisible: int = 32
    anchor_sizes: tuple[tuple[float, ...], ...] | None = None
    n_frozen_parts: int = 0

    @abstractmethod
    def freezable_parts(self) -> list[list[nn.Module | nn.Parameter]]:
        """The stem's modules and parameters, then those of each block, from the input on."""

    def train(self, mode: bool = True) -> Self:
        """Set training mode everywhere but in frozen parts."""
        super().train(mode)
        for part in self.freezable_parts()[: self.n_frozen_parts]:
            for member in part:
                if isinstance(member, nn.Module):
                    member.eval()
        return self


def backbone_of(model: nn.Module) -> Backbone:
    """The backbone of a detector.

    Raises:
        TypeError: the model was not made by ``build_detector``.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise TypeError(f"expected a detector made by build_detector, found {type(model).__name__}")
    return backbone


class ConvolutionalBackbone(Backbone):
    """A convolutional network (``body``) and a feature pyramid (``fpn``), with torchvision's names."""

    def __init__(self, body: nn.Module, channels: Sequence[int], strides: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels
        self.roi_strides = tuple(strides)
        self.strides = (*strides, 2 * strides[-1])

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images (B, 3, H, W) to level name -> (B, out_channels, H / stride, W / stride)."""
        maps = self.body(images)
        if not isinstance(maps, dict):
            maps = OrderedDict((str(index), level) for index, level in enumerate(maps))
        levels: OrderedDict[str, Tensor] = self.fpn(maps)
        return levels

    def freezable_parts(self) -> list[list[nn.Module | nn.Parameter]]:
        """The stem, then the stages of the network; the pyramid is never frozen."""
        children = [
            (f"{name}.{inner}" if inner else name, module)
            for name, child in self.body.named_children()
            for inner, module in (child.named_children() if name in _CONTAINERS else [("", child)])
        ]
        parts: list[list[nn.Module | nn.Parameter]] = [[]]
        for name, module in children:
            if _STAGE.match(name):
                parts.append([module])
            else:
                # What is between two stages (a transition, a downsampling) goes with the stage before.
                parts[-1].append(module)
        return parts


def resnet50_backbone(configuration: ModelConfiguration) -> ConvolutionalBackbone:
    """torchvision's ResNet-50 with random weights, named as in ``fasterrcnn_resnet50_fpn``."""
    network = resnet50(weights=None, norm_layer=_norm_layer(configuration.norm))
    strides = _roi_strides(configuration)
    first = 1 + len(ROI_STRIDES) - len(strides)
    wanted = range(first, len(ROI_STRIDES) + 1)
    body = IntermediateLayerGetter(network, {f"layer{layer}": str(index) for index, layer in enumerate(wanted)})
    channels = [256 * 2 ** (layer - 1) for layer in wanted]
    return ConvolutionalBackbone(body, channels, strides, configuration.pyramid_channels)


def timm_backbone(configuration: ModelConfiguration) -> ConvolutionalBackbone:
    """A convolutional network of timm with random weights.

    Raises:
        ValueError: timm has no such network, or it has no maps at the pyramid's strides (transformers).
    """
    import timm

    name = configuration.timm_model
    if not timm.is_model(name):
        raise ValueError(f"timm_model: expected a network that timm knows, found {name!r}; see timm.list_models()")
    strides = _roi_strides(configuration)
    probe: Any = timm.create_model(name, pretrained=False, features_only=True)
    reductions = list(probe.feature_info.reduction())
    if not set(strides) <= set(reductions):
        raise ValueError(
            f"timm_model {name}: expected maps of strides {', '.join(map(str, strides))}, found "
            f"{', '.join(map(str, reductions))}; take a convolutional network such as resnet18"
        )
    # The last map of each stride has seen the most.
    wanted = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides]
    body: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=tuple(wanted))
    channels = body.feature_info.channels()
    return ConvolutionalBackbone(
        _with_norm(body, configuration.norm), channels, strides, configuration.pyramid_channels
    )


def input_statistics(configuration: ModelConfiguration) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation (RGB, 0 to 1) that a network's input is normalized by.

    Those of the configuration, else those of the images that the network of timm is pretrained on, else ImageNet's.
    """
    if configuration.input_mean is not None and configuration.input_std is not None:
        return configuration.input_mean, configuration.input_std
    if configuration.backbone == "timm_fpn":
        import timm

        pretrained = timm.get_pretrained_cfg(configuration.timm_model)
        if pretrained is not None:
            return tuple(pretrained.mean), tuple(pretrained.std)
    return IMAGENET_MEAN, IMAGENET_STD


def _roi_strides(configuration: ModelConfiguration) -> tuple[int, ...]:
    return tuple(stride for stride in ROI_STRIDES if stride >= configuration.finest_stride)


def _norm_layer(norm: str) -> type[nn.Module]:
    layers: dict[str, type[nn.Module]] = {
        "frozen_batch": FrozenBatchNorm2d,
        "batch": nn.BatchNorm2d,
        "group": _GroupNorm,
    }
    return layers[norm]


class _GroupNorm(nn.GroupNorm):
    """Group norm with the call of a batch norm: up to 32 groups, fewer where the channels do not divide."""

    def __init__(self, channels: int) -> None:
        groups = next(n for n in range(min(_LARGEST_GROUP_COUNT, channels), 0, -1) if channels % n == 0)
        super().__init__(groups, channels)


def _with_norm(network: nn.Module, norm: str) -> nn.Module:
    """Replace the batch norms of a timm network; norms with a built-in activation keep it."""
    from timm.layers.norm_act import freeze_batch_norm_2d

    if norm == "batch":
        return network
    if norm == "frozen_batch":
        frozen: nn.Module = freeze_batch_norm_2d(network)  # type: ignore[no-untyped-call]
        return frozen
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            activation = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
            replacement: nn.Module = _GroupNorm(child.num_features)
            setattr(network, name, nn.Sequential(replacement, *activation) if activation else replacement)
        else:
            _with_norm(child, norm)
    return network
