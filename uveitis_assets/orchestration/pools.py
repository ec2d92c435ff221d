"""Names of the concurrency pools."""

from __future__ import annotations

GPU_POOL = "gpu"
