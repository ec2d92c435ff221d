"""Device and precision of a computation: the rules by which ``auto`` becomes one."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Amp = Literal["auto", "bf16", "off"]


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


def uses_bfloat16(wanted: Amp, device: str) -> bool:
    """Whether a training multiplies in bfloat16.

    ``auto`` does so where the device has units for it: CUDA, CPUs with AMX.
    """
    import torch

    if wanted != "auto":
        return wanted == "bf16"
    return device.startswith("cuda") or bool(torch.cpu.get_capabilities().get("amx_bf16"))


def answers_in_half_precision(wanted: Amp, device: str) -> bool:
    """Whether a trained network answers in mixed precision: on CUDA, unless its training was not to.

    ``wanted`` is the ``training.amp`` of the training. Its validation asks, and the lineage of the weights holds the
    answer, so that evaluation and prediction answer as the epoch was judged. On the CPU answers are float32: there
    results are to be equal bit for bit.
    """
    return device.startswith("cuda") and wanted != "off"
