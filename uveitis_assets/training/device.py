"""Device and precision of a computation: the rules by which ``auto`` becomes one."""

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


def uses_bfloat16(wanted: Literal["auto", "bf16", "off"], device: str) -> bool:
    """Whether a training multiplies in bfloat16.

    ``auto`` does so where the device has units for it: CUDA, CPUs with AMX.
    """
    import torch

    if wanted != "auto":
        return wanted == "bf16"
    return device.startswith("cuda") or bool(torch.cpu.get_capabilities().get("amx_bf16"))


def answers_in_half_precision(wanted: Literal["auto", "bf16", "off"], device: str) -> bool:
    """Whether a trained network answers in mixed precision: on CUDA, unless its training was not to.

    Validation, evaluation and prediction ask it with the lane's ``training.amp``, so that the epoch that is chosen is
    judged as it will answer. On the CPU answers are float32: there results are to be equal bit for bit.
    """
    return device.startswith("cuda") and wanted != "off"
