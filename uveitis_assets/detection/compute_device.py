"""Where a computation runs: the one rule by which ``auto`` becomes a device."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]


def chosen_device(wanted: Device) -> str:
    """``cuda`` or ``cpu``; ``auto`` takes the GPU when there is one.

    Raises:
        RuntimeError: ``cuda`` is wanted and there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device cuda: found no usable GPU; check the driver with nvidia-smi, or set device to auto")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
