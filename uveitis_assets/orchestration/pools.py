"""Names of the concurrency pools, and of the tag that tells launchers of the need for a GPU."""

from __future__ import annotations

GPU_POOL = "gpu"
GPU_TAG = "uveitis/gpu"
