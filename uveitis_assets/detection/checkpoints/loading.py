"""Loads weights into detectors: whole detectors, backbones, RETFound's files, trained detectors.

Every load counts what matched, logs the count and refuses a file that fits too little, before it changes the model.
Files are read by ``weights_files``; what an earlier checkpoint holds is found by ``legacy``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from uveitis_assets.detection.checkpoints.legacy import legacy_configuration
from uveitis_assets.detection.model_configuration import IMAGENET_MEAN, IMAGENET_STD, ModelConfiguration
from uveitis_assets.detection.models.backbones import backbone_of
from uveitis_assets.detection.models.class_logits import mask_untaught_classes
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.feature_pyramid import PATCH_STRIDE
from uveitis_assets.detection.models.retfound import resized_position_embedding
from uveitis_assets.training.weights_files import WeightsFile, read_lineage, read_weights_file
from uveitis_assets.training.weights_loading import LoadReport, Part, WeightsMismatchError, load_matching_weights

Mode = Literal["full", "features", "backbone_only"]

_LOG = logging.getLogger(__name__)
_ENCODERS = ("vit", "body")
# What pretraining files hold beside the encoder: decoders, projection heads, classifiers; and a detector's other parts.
_NOT_ENCODER = re.compile(r"^(decoder_|mask_token|head\.|dino_head\.|ibot_head\.|fc\.|fpn\.|pyramid\.|proj\.|smooth\.)")
_DETECTOR_PARTS = ("rpn.", "roi_heads.")
# Layers whose shape and meaning are those of the anchors and categories.
_TASK_LAYERS = re.compile(r"^(rpn\.head\.(cls_logits|bbox_pred)|roi_heads\.(later_stages\.\d+\.)?box_predictor)\.")
_LATER_STAGE = re.compile(r"^roi_heads\.later_stages\.(\d+)\.(.+)$")
_ANOTHER_CODE = "box_predictor.bbox_pred."
# Published files were saved before torchvision put convolutions into blocks.
_EARLIER_TORCHVISION = (
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
)
_GATED = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}


def load_detector_weights(model: nn.Module, path: Path, *, mode: Mode = "full", min_matched: float = 0.9) -> LoadReport:
    """Load a detector checkpoint, .safetensors or .pth, also torchvision's, into ``model``.

    Position embeddings are resized.

    ``full`` wants every tensor of the model, and ``min_matched`` of encoder, pyramid, proposal head and box head each:
    a head made for other anchors is refused. Only the predictors, which belong to the categories, may start anew.
    ``features`` leaves the layers that belong to anchors and categories as they are, and wants all others: so a
    detector of torchvision that learned COCO starts one of other anchors and of lesions.
    Stages of the box head that the file lacks start as the last one that it has, but for the box regression of the
    later ones, whose code is another: so a detector without a cascade starts one.
    ``backbone_only`` loads the tensors below ``backbone.`` and counts the encoder (ViT or ResNet), so that a new
    pyramid may start anew.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsMismatchError: the file provides less than ``min_matched`` of the model or of a part, is of another
            architecture, or not finite.
        ValueError: the file is damaged or holds code.
    """
    file = read_weights_file(path)
    if not any(name.startswith("backbone.") for name in file.tensors) or file.root == "teacher":
        raise WeightsMismatchError(
            f"{path}: expected a detector's weights (backbone.*, rpn.*, roi_heads.*), found the tensors of something "
            "else; files of a backbone alone go to initialise.backbone_weights"
        )
    encoder = _encoder_of(model)
    given = {_renamed(name): value for name, value in file.tensors.items()}
    known = set(given)
    if mode == "backbone_only":
        given = {name: value for name, value in given.items() if name.startswith("backbone.")}
    elif mode == "features":
        given = {name: value for name, value in given.items() if not _TASK_LAYERS.match(name)}
    ignored = sorted(known.difference(given))
    _check_structure(path, model, given)
    state, adapted = _adapted(model, given, encoder)
    further = _further_stages(model, state)
    report = load_matching_weights(
        model,
        state | {name: state[source] for name, source in further.items()},
        file=path,
        min_matched=min_matched,
        wanted=_wanted(model, encoder, mode),
        parts=() if mode == "backbone_only" else _parts(model, encoder, without_task=mode == "features"),
        adapted=[*adapted, *(f"{name}: from {source}" for name, source in further.items())],
        ignored=ignored,
    )
    _LOG.info("%s", report.summary())
    return report


def load_backbone_weights(model: nn.Module, path: Path, *, min_matched: float = 0.9) -> LoadReport:
    """Load a pretrained encoder into ``model``'s backbone; pyramid and heads stay as they are.

    Knows RETFound's files (root ``model``: MAE; root ``teacher``: DINOv2), ResNet states of torchvision, encoders of
    the masked autoencoder, and detectors, whose encoder is taken. Decoders, mask token and classifiers are ignored.
    Position embeddings and patch embeddings of another size are resized. DINOv2's gated MLP keeps its meaning: ``w12``
    is a gate and a value side by side, which timm names ``fc1`` in a gated block; a model without gates is refused.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsMismatchError: the file provides less than ``min_matched`` of the encoder, is of another architecture,
            or not finite.
        ValueError: the file is damaged or holds code.
    """
    file = read_weights_file(path)
    encoder = _encoder_of(model)
    given, ignored = _encoder_tensors(file, encoder)
    given = {_ungated(name): value for name, value in given.items()}
    _check_structure(path, model, given)
    state, adapted = _adapted(model, given, encoder)
    report = load_matching_weights(
        model,
        state,
        file=path,
        min_matched=min_matched,
        wanted=_names_below(model, encoder),
        adapted=adapted,
        ignored=ignored,
    )
    _LOG.info("%s", report.summary())
    return report


def load_trained_detector(
    path: Path, *, changes: Mapping[str, Any] | None = None
) -> tuple[nn.Module, ModelConfiguration]:
    """Rebuild a trained detector from a .safetensors file or an earlier .pth alone.

    It is in evaluation mode, on the CPU, and answers with the classes that it learned: the file's lineage names them.

    Of a training's own last.pth the averaged weights are taken.

    ``changes`` replace fields of the stored configuration, such as thresholds, or ``anchor_sizes`` of earlier
    checkpoints whose files do not name theirs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, does not name its model, or is not exactly that model.
    """
    file = read_weights_file(path)
    changed = dict(changes or {})
    if path.suffix == ".safetensors":
        stored = file.details.get("configuration", {}).get("model")
        if not isinstance(stored, Mapping):
            raise ValueError(
                f"{path}: expected a lineage with configuration.model in the file, or beside it as "
                f"{path.stem}.json, found none; load it into a model that you configure (initialise.checkpoint)"
            )
        configuration = ModelConfiguration(**{**_with_statistics(stored), **changed})
    else:
        config = file.details.get("config")
        yaml = config if isinstance(config, Mapping) else {}
        if file.root == "average" and isinstance(yaml.get("model"), Mapping):
            configuration = ModelConfiguration(**{**_with_statistics(yaml["model"]), **changed})
        else:
            configuration = legacy_configuration(path, file.tensors, yaml, changed)
    model = build_detector(configuration)
    encoder = _encoder_of(model)
    state, adapted = _adapted(model, file.tensors, encoder)
    report = load_matching_weights(model, state, file=path, min_matched=1.0, adapted=adapted)
    if report.unexpected:
        raise WeightsMismatchError(
            f"{report.summary()}; expected exactly the tensors of the model that the file describes"
        )
    _LOG.info("%s", report.summary())
    if taught := _taught_classes(file):
        mask_untaught_classes(model, taught)
    model.eval()
    return model, configuration


def stored_input_statistics(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation (RGB, 0 to 1) that a detector's file normalizes its input by.

    ImageNet's where a file of before does not name them; None for files that are no detector's of this platform, or
    that take their backbone's own.
    """
    if path.suffix != ".safetensors":
        return None
    stored = read_lineage(path).get("configuration", {}).get("model")
    if not isinstance(stored, Mapping) or "backbone" not in stored:
        return None
    mean, std = (_with_statistics(stored)[name] for name in ("input_mean", "input_std"))
    return None if mean is None or std is None else (tuple(mean), tuple(std))


def _with_statistics(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored model configuration, with ImageNet's mean and deviation where it lacks them."""
    return {"input_mean": IMAGENET_MEAN, "input_std": IMAGENET_STD, **stored}


def _taught_classes(file: WeightsFile) -> list[int]:
    """Category ids that the weights learned; empty where the file does not say, as earlier ones."""
    categories = file.details.get("categories", {}) if file.path.suffix == ".safetensors" else {}
    return [int(number) for number in categories]


def _encoder_of(model: nn.Module) -> str:
    backbone = backbone_of(model)
    return f"backbone.{next(name for name in _ENCODERS if hasattr(backbone, name))}."


def _names_below(model: nn.Module, prefix: str) -> list[str]:
    return [name for name in model.state_dict() if name.startswith(prefix) and not name.endswith("num_batches_tracked")]


def _renamed(name: str) -> str:
    """The present name of a tensor that an earlier version of torchvision named."""
    for pattern, replacement in _EARLIER_TORCHVISION:
        name = pattern.sub(replacement, name)
    return name


def _wanted(model: nn.Module, encoder: str, mode: Mode) -> list[str] | None:
    """Names that count for the share of what matched; None: all."""
    if mode == "full":
        return None
    if mode == "backbone_only":
        return _names_below(model, encoder)
    return [name for name in _names_below(model, "") if not _TASK_LAYERS.match(name)]


def _further_stages(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors of the stages that a file lacks, with the name of each in the file's last stage."""
    last = max((int(stage[1]) for name in given if (stage := _LATER_STAGE.match(name))), default=None)
    prefix = "roi_heads." if last is None else f"roi_heads.later_stages.{last}."
    lacking = [stage for name in model.state_dict() if name not in given and (stage := _LATER_STAGE.match(name))]
    sources = {stage[0]: prefix + stage[2] for stage in lacking if not stage[2].startswith(_ANOTHER_CODE)}
    return {name: source for name, source in sources.items() if source in given}


def _parts(model: nn.Module, encoder: str, *, without_task: bool) -> list[Part]:
    """All but the predictors.

    Other categories, or oriented boxes, are learned by new ones on the same features. ``without_task`` leaves out the
    layers that belong to the anchors too.
    """
    proposal_head = [name for name in _names_below(model, "rpn.") if not (without_task and _TASK_LAYERS.match(name))]
    box_heads = [name for name in _names_below(model, "roi_heads.") if ".box_head." in name]
    encoder_names = _names_below(model, encoder)
    pyramid = sorted(set(_names_below(model, "backbone.")).difference(encoder_names))
    return [
        Part("encoder", encoder_names, "model.backbone"),
        Part("pyramid", pyramid, "model.neck, model.finest_stride and model.pyramid_channels"),
        Part(
            "proposal head",
            proposal_head,
            "model.anchor_sizes, model.anchor_ratios and model.pyramid_channels",
        ),
        Part("box head", box_heads, "model.head_width and model.pyramid_channels"),
    ]


def _encoder_tensors(file: WeightsFile, encoder: str) -> tuple[dict[str, Tensor], list[str]]:
    """The file's encoder under the model's names, and the names that are left out on purpose."""
    given: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, value in file.tensors.items():
        inner = name.removeprefix("backbone.")
        if inner.startswith(_DETECTOR_PARTS) or _NOT_ENCODER.match(inner):
            ignored.append(name)
            continue
        for kind in _ENCODERS:
            inner = inner.removeprefix(f"{kind}.")
        given[encoder + inner] = value
    return given, ignored


def _ungated(name: str) -> str:
    for theirs, ours in _GATED.items():
        name = name.replace(theirs, ours)
    return name


def _check_structure(path: Path, model: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Refuse files whose tensors would fit by name and shape, but mean something else in this model."""
    own = model.state_dict()
    if not any(name in own for name in given):
        # Another architecture altogether: the count of matches shows it.
        return
    features: tuple[tuple[str, str, Callable[[Mapping[str, Tensor]], bool]], ...] = (
        ("blocks with a gated MLP (SwiGLU)", "vit_mlp", _has_gates),
        ("blocks with layer scale (ls1, ls2)", "vit_layer_scale", partial(_has, suffix=".ls1.gamma")),
        ("norms with running statistics (batch norm)", "norm", partial(_has, suffix=".running_mean")),
    )
    checks = [(what, has(given), has(own), field) for what, field, has in features]
    for what, in_file, in_model, field in checks:
        if in_file != in_model:
            found, wanted = ("", "without") if in_file else ("no ", "with")
            raise WeightsMismatchError(
                f"{path}: found {found}{what}, expected the file of a model {wanted} them; set model.{field} to fit "
                "the file or take another file"
            )


def _has(tensors: Mapping[str, Tensor], *, suffix: str) -> bool:
    return any(name.endswith(suffix) for name in tensors)


def _has_gates(tensors: Mapping[str, Tensor]) -> bool:
    """Gated MLPs enter with gate and value, twice the width they leave with."""
    for name, value in tensors.items():
        leaving = tensors.get(name.replace(".mlp.fc1.weight", ".mlp.fc2.weight"))
        if name.endswith(".mlp.fc1.weight") and leaving is not None:
            return value.shape[0] == 2 * leaving.shape[1]
    return False


def _adapted(model: nn.Module, given: Mapping[str, Tensor], encoder: str) -> tuple[dict[str, Tensor], list[str]]:
    """Resize position and patch embeddings to the model's; everything else stays as it is."""
    own, state, adapted = model.state_dict(), dict(given), []
    places, patches = f"{encoder}pos_embed", f"{encoder}patch_embed.proj.weight"
    if places in state and places in own and state[places].shape[-1] == own[places].shape[-1]:
        side = round((own[places].shape[1] - 1) ** 0.5)
        state[places] = resized_position_embedding(state[places], side)
    if patches in state and patches in own and state[patches].shape[:2] == own[patches].shape[:2]:
        state[patches] = _resized_patches(state[patches])
    for name in (places, patches):
        if name in state and state[name].shape != given[name].shape:
            adapted.append(f"{name}: {tuple(given[name].shape)} -> {tuple(state[name].shape)}")
    return state, adapted


def _resized_patches(weights: Tensor) -> Tensor:
    """Patch embedding (width, 3, P, P) resized to patches of 16 px that give the same tokens.

    Source: Beyer et al., "FlexiViT: One Model for All Patch Sizes", CVPR 2023 (pseudo-inverse resize), as in timm.
    """
    from timm.layers.patch_embed import resample_patch_embed

    if weights.shape[-2:] == (PATCH_STRIDE, PATCH_STRIDE):
        return weights
    resized: Tensor = resample_patch_embed(weights, [PATCH_STRIDE, PATCH_STRIDE])
    return resized
