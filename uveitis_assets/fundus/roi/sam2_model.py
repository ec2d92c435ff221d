"""SAM 2 models: configuration, checkpoint and a report of what the checkpoint gave the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from uveitis_assets.fundus.configuration import Sam2Configuration
from uveitis_assets.storage.files import PathEscapesRootError, resolve_inside

if TYPE_CHECKING:
    import torch


# Classes that a model configuration may build. Hydra would call any name that Python can import, so that a YAML file
# could run anything; the configurations shipped with sam2 need exactly these.
BUILDABLE_CLASSES = frozenset(
    f"sam2.modeling.{name}"
    for name in (
        "sam2_base.SAM2Base",
        "backbones.image_encoder.ImageEncoder",
        "backbones.image_encoder.FpnNeck",
        "backbones.hieradet.Hiera",
        "position_encoding.PositionEmbeddingSine",
        "memory_attention.MemoryAttention",
        "memory_attention.MemoryAttentionLayer",
        "memory_encoder.MemoryEncoder",
        "memory_encoder.MaskDownSampler",
        "memory_encoder.Fuser",
        "memory_encoder.CXBlock",
        "sam.transformer.RoPEAttention",
    )
)


# What sam2's build_sam2(apply_postprocessing=True) adds: only the single-mask output makes use of it.
STABILITY_ARGUMENTS = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}


N_KEYS_NAMED = 5


INSTALL_HINT = "install torch and then sam2 (`make install`)"


class Sam2UnavailableError(RuntimeError):
    """SAM 2 cannot be used as configured; the message names the file or device, what was found and what to do."""


@dataclass(frozen=True, slots=True)
class ShapeMismatch:
    """A tensor whose shape in the checkpoint is not the model's."""

    key: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """How a checkpoint's tensors fit the model: key names, sorted.

    ``matched`` keys agree in name and shape; ``missing`` ones the model needs and the file lacks; ``unexpected`` ones
    the model has no place for.
    """

    checkpoint: Path
    model_cfg: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[ShapeMismatch, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model and of the file found its partner."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """Counts and the first names of what does not fit, on one line."""
        mismatches = [f"{item.key} (expected {item.expected}, found {item.found})" for item in self.mismatched]
        parts = [
            f"{len(self.matched)} matched",
            _counted("missing", self.missing),
            _counted("unexpected", self.unexpected),
            _counted("of another shape", mismatches),
        ]
        return ", ".join(parts)


def _counted(what: str, names: Sequence[str]) -> str:
    if not names:
        return f"0 {what}"
    more = ", ..." if len(names) > N_KEYS_NAMED else ""
    return f"{len(names)} {what} ({', '.join(names[:N_KEYS_NAMED])}{more})"


def read_sam2_checkpoint(checkpoint: Path) -> dict[str, torch.Tensor]:
    """State dict of an official checkpoint, on the CPU."""
    import torch

    if not checkpoint.is_file():
        found = "a folder" if checkpoint.is_dir() else "no file"
        raise Sam2UnavailableError(
            f"{checkpoint}: expected an official SAM 2 checkpoint, found {found}; download it (for the default "
            "configuration sam2.1_hiera_base_plus.pt) to this place or set roi.sam2.checkpoint"
        )
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile pickle can raise anything
        raise Sam2UnavailableError(
            f"{checkpoint}: expected a readable checkpoint of tensors only, found {checkpoint.stat().st_size} bytes "
            f"that torch refuses ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); the "
            "file is damaged, not a checkpoint, or holds code: download it again"
        ) from error
    if not isinstance(content, Mapping):
        raise Sam2UnavailableError(_other_form(checkpoint, type(content).__name__))
    state = content.get("model")
    if not isinstance(state, Mapping):
        keys = sorted(map(str, content))
        named = ", ".join(keys[:N_KEYS_NAMED]) + (", ..." if len(keys) > N_KEYS_NAMED else "")
        raise Sam2UnavailableError(_other_form(checkpoint, f"root keys [{named}]"))
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            raise Sam2UnavailableError(_other_form(checkpoint, f"{type(value).__name__} at model[{key!r}]"))
    return dict(state)


def _other_form(checkpoint: Path, found: str) -> str:
    return (
        f"{checkpoint}: expected the official form {{'model': {{name: tensor}}}}, found {found}; take an official "
        "SAM 2 checkpoint or store the state dict under the root key `model`"
    )


def compare_checkpoint(
    checkpoint: Path,
    model_cfg: str,
    expected: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
) -> CheckpointReport:
    shared = sorted(expected.keys() & found.keys())
    return CheckpointReport(
        checkpoint=checkpoint,
        model_cfg=model_cfg,
        matched=tuple(key for key in shared if expected[key].shape == found[key].shape),
        missing=tuple(sorted(expected.keys() - found.keys())),
        unexpected=tuple(sorted(found.keys() - expected.keys())),
        mismatched=tuple(
            ShapeMismatch(key, tuple(expected[key].shape), tuple(found[key].shape))
            for key in shared
            if expected[key].shape != found[key].shape
        ),
    )


def build_sam2_model(configuration: Sam2Configuration) -> Any:
    """Model with random weights; the caller holds the lock.

    The YAML is read directly instead of through Hydra's compose: that reads the process's one global Hydra, which
    another library may have pointed elsewhere. The shipped files have no defaults list, so that the result is equal.
    """
    package = _import_sam2()
    try:
        import torch
        from hydra.utils import instantiate
        from omegaconf import OmegaConf
    except ImportError as error:
        raise Sam2UnavailableError(f"expected sam2's requirements, found {error}; {INSTALL_HINT}") from error

    path = _model_cfg_path(configuration.model_cfg, package)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # YAML and OmegaConf have no common base of their errors
        raise Sam2UnavailableError(f"{path}: expected a model configuration in YAML, found {error}; mend it") from error
    model_node = _checked_model_node(path, content)
    if configuration.apply_postprocessing:
        arguments = model_node.get("sam_mask_decoder_extra_args") or {}
        model_node["sam_mask_decoder_extra_args"] = {**arguments, **STABILITY_ARGUMENTS}
    try:
        # Initial weights are drawn from torch's global generator and then replaced: leave its state as it was.
        with torch.random.fork_rng(devices=[]):
            return instantiate(OmegaConf.create(model_node), _recursive_=True)
    except Exception as error:
        raise Sam2UnavailableError(f"{path}: sam2 cannot build this model: {error}; mend the configuration") from error


def _checked_model_node(path: Path, content: Any) -> dict[str, Any]:
    """The ``model`` part of a configuration, refused when it would do more than build sam2's classes."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise Sam2UnavailableError(f"{path}: expected a mapping with the key `model`; take one of sam2's as a pattern")
    if "defaults" in content:
        raise Sam2UnavailableError(f"{path}: found a Hydra defaults list, which is not followed; write the file out")
    for key, value in _entries("model", content["model"]):
        name = key.rpartition(".")[2]
        if name == "_target_" and value not in BUILDABLE_CLASSES:
            raise Sam2UnavailableError(
                f"{path}: {key}: expected a class of sam2's image model, found {value!r}; remove it"
            )
        if name == "weights_path" and value is not None:
            raise Sam2UnavailableError(
                f"{path}: {key}: expected all weights in the checkpoint, found {value!r}; remove it"
            )
    if content["model"].get("_target_") != "sam2.modeling.sam2_base.SAM2Base":
        raise Sam2UnavailableError(f"{path}: model._target_: expected sam2.modeling.sam2_base.SAM2Base")
    return cast(dict[str, Any], content["model"])


def _entries(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _entries(f"{prefix}.{key}", value)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _entries(f"{prefix}.{index}", value)
    else:
        yield prefix, node


def _model_cfg_path(model_cfg: str, package: Path) -> Path:
    path = Path(model_cfg)
    if not path.is_absolute():
        try:
            path = resolve_inside(package, model_cfg)
        except PathEscapesRootError as error:
            raise Sam2UnavailableError(f"roi.sam2.model_cfg: {error}") from error
    if not path.is_file():
        shipped = sorted(file.relative_to(package).as_posix() for file in (package / "configs").glob("sam2*/*.yaml"))
        known = ", ".join(name for name in shipped if "training" not in name)
        raise Sam2UnavailableError(
            f"roi.sam2.model_cfg: expected a file of the sam2 package or an absolute path, found no {path}; "
            f"the package has {known}"
        )
    return path


def _import_sam2() -> Path:
    """Import sam2 without its side effect and return its folder; the caller holds the lock.

    sam2 initialises the process's one global Hydra when it is imported, unless that is done: then every later
    ``hydra.initialize`` of the process fails. So it finds it done.
    """
    try:
        with _hydra_seems_initialised():
            import sam2
    except ImportError as error:
        raise Sam2UnavailableError(f"expected sam2 to be installed, found {error}; {INSTALL_HINT}") from error
    return Path(sam2.__path__[0])


@contextmanager
def _hydra_seems_initialised() -> Iterator[None]:
    from hydra.core.global_hydra import GlobalHydra

    state = GlobalHydra.instance()
    if state.is_initialized():
        yield
        return
    placeholder = cast(Any, object())
    state.hydra = placeholder
    try:
        yield
    finally:
        if state.hydra is placeholder:
            state.hydra = None
