"""SAM 2 models built from their YAML configurations, which may name classes of sam2 only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from uveitis_assets.fundus.configuration import Sam2Configuration
from uveitis_assets.storage.files import PathEscapesRootError, resolve_inside

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


INSTALL_HINT = "install torch and then sam2 (`make install`)"


class Sam2UnavailableError(RuntimeError):
    """SAM 2 cannot be used as configured; the message says what was found and what to do."""


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

    path = model_cfg_path(configuration.model_cfg, package)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # YAML and OmegaConf have no common base of their errors
        raise Sam2UnavailableError(
            f"{path}: expected a model configuration in YAML, found {error}; correct it"
        ) from error
    model_node = checked_model_node(path, content)
    if configuration.apply_postprocessing:
        arguments = model_node.get("sam_mask_decoder_extra_args") or {}
        model_node["sam_mask_decoder_extra_args"] = {**arguments, **STABILITY_ARGUMENTS}
    try:
        # Initial weights are drawn from torch's global generator and then replaced: leave its state as it was.
        with torch.random.fork_rng(devices=[]):
            return instantiate(OmegaConf.create(model_node), _recursive_=True)
    except Exception as error:
        raise Sam2UnavailableError(
            f"{path}: sam2 cannot build this model: {error}; correct the configuration"
        ) from error


def checked_model_node(path: Path, content: Any) -> dict[str, Any]:
    """The ``model`` part of a configuration.

    Raises:
        Sam2UnavailableError: it has another form, or would do more than build sam2's classes.
    """
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


def model_cfg_path(model_cfg: str, package: Path) -> Path:
    """File of a configuration: ``model_cfg`` is a path inside the sam2 ``package`` or an absolute one.

    Raises:
        Sam2UnavailableError: it leads out of the package, or there is no such file.
    """
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

    sam2 initialises the process's one global Hydra when it is imported, unless that is done already, and every later
    ``hydra.initialize`` of the process would fail.
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
