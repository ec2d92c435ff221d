"""Names of the GPU pool, and of the tag that marks runs that need a GPU for the launchers."""

from __future__ import annotations

GPU_POOL = "gpu"
GPU_TAG = "uveitis/gpu"
