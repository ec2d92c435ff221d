"""Names of the GPU pool, and of the tag by which launchers know that a run needs a GPU."""

from __future__ import annotations

GPU_POOL = "gpu"
GPU_TAG = "uveitis/gpu"
