"""Reads .safetensors and PyTorch files without running code; writes .safetensors with their lineage.

PyTorch files are only read with ``weights_only``; plain data that earlier files hold beside the tensors is allowed by
name.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from uveitis_assets.storage.files import json_bytes, read_json, write_bytes

_LINEAGE = "lineage"
# An unfinished training keeps its averaged weights beside the others: the average is what is evaluated and used.
_STATE_ROOTS = ("average", "model", "teacher", "state_dict")
_NOT_DETAILS = (*_STATE_ROOTS, "optimizer", "scaler", "random")
_numpy_scalar: Any = np.float64(0).__reduce__()[0]
# Plain data without behaviour that earlier files hold beside the tensors; everything else is refused.
_PLAIN_DATA: list[Any] = [
    # Both names under which NumPy 1 and 2 write a number, in metrics.
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    # RETFound's files keep their command line.
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Tensors by name, on the CPU, and what else the file holds.

    ``root`` names where the tensors stood in a PyTorch file: ``average``, ``model``, ``teacher``, ``state_dict``, or
    "" when the file was nothing but tensors; ``details`` are a .safetensors file's lineage, or the other roots of a
    PyTorch file.
    """

    path: Path
    root: str
    tensors: dict[str, Tensor]
    details: dict[str, Any]


def parent_of(path: Path) -> dict[str, str]:
    """Name and digest of the file that a training started from."""
    return {"file": path.name, "digest": file_digest(path)}


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def save_weights(path: Path, weights: Mapping[str, Tensor], lineage: Mapping[str, Any]) -> None:
    """Writes weights and lineage as one .safetensors file, atomically, and the lineage as JSON beside it.

    The file holds its lineage, so it stays readable when it is copied alone; the JSON is for people and for tools. The
    same weights and lineage give the same bytes.

    Raises:
        ValueError: the suffix is not .safetensors, or the lineage lacks the model's configuration.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a name that ends in .safetensors; weights are not written as pickles")
    configuration = lineage.get("configuration")
    if not isinstance(configuration, Mapping) or not isinstance(configuration.get("model"), Mapping):
        raise ValueError(
            f"{path}: lineage: expected configuration.model, without which the model cannot be rebuilt; found the "
            f"keys {', '.join(lineage) or 'none'}"
        )
    text = json_bytes(lineage)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_bytes(path, save(tensors, metadata={_LINEAGE: text.decode()}))
    write_bytes(path.with_suffix(".json"), text)


def read_weights_file(path: Path) -> WeightsFile:
    """Read a .safetensors or PyTorch file (.pth, .pt, .bin) without running code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code or objects, or holds no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a weights file, found none; put it there or correct the path")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)


def read_lineage(path: Path) -> dict[str, Any]:
    """Lineage of a .safetensors file, from the file or else from the JSON beside it.

    Empty where neither has it. The tensors are not read. Other files have none.

    Raises:
        ValueError: the file is damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return _lineage(path, file.metadata() or {})
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except SafetensorError as error:
        raise _damaged(path, error) from error
    return WeightsFile(path, "", tensors, _lineage(path, metadata))


def _lineage(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    sidecar = path.with_suffix(".json")
    try:
        if _LINEAGE in metadata:
            lineage = json.loads(metadata[_LINEAGE])
        else:
            lineage = read_json(sidecar) if sidecar.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: lineage: expected JSON, found {error}; copy the file again") from error
    if not isinstance(lineage, dict):
        raise ValueError(f"{path}: lineage: expected names and values, found {type(lineage).__name__}; copy it again")
    return lineage


def _damaged(path: Path, error: SafetensorError) -> ValueError:
    return ValueError(
        f"{path}: expected a .safetensors file, found {error}; copy it again, or delete it and train again"
    )


def load_without_code(path: Path, *, device: str) -> Any:
    """``torch.load`` of tensors and plain values alone.

    Raises:
        EOFError: the file ends early.
        pickle.UnpicklingError: it holds something else.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        # How torch finds that a small archive lacks its end; other errors are the disk's.
        if error.errno != errno.EINVAL:
            raise
        raise EOFError("it ends early") from error


def _read_pytorch(path: Path) -> WeightsFile:
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA):
            content = load_without_code(path, device="cpu")
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(
            f"{path}: expected tensors, numbers and text only, found something else, which is not loaded because it "
            f"could run code, or a damaged file: {reason[:300]}"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected a PyTorch file, found a damaged one ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    for root in _STATE_ROOTS:
        if isinstance(content.get(root), dict):
            details = {str(name): value for name, value in content.items() if name not in _NOT_DETAILS}
            return WeightsFile(path, root, _tensors(path, content[root]), details)
    return WeightsFile(path, "", _tensors(path, content), {})


def _tensors(path: Path, values: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {
        # Wrappers for several GPUs put their own name in front.
        str(name).removeprefix("module."): value
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        keys = ", ".join(sorted(map(str, values))[:10])
        raise ValueError(
            f"{path}: expected tensors by name, or a dictionary of them under {', '.join(_STATE_ROOTS)}; found {keys}"
        )
    return tensors
