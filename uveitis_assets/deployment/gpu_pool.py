"""Add the pool ``gpu`` to a new database before the daemon reads the queue for the first time.

Dagster enters a pool with its default limit while it looks at a queue that names the pool, but obeys the limit only
from the next look on: all GPU runs of the first look would start at once.

Run with ``python -m uveitis_assets.deployment.gpu_pool``; the image's entrypoint does so.
"""

from __future__ import annotations

import dagster as dg

from uveitis_assets.orchestration.pools import GPU_POOL


def make_gpu_pool_known(instance: dg.DagsterInstance) -> None:
    """Add the pool with the default limit of ``dagster.yaml``; an existing limit is kept."""
    storage = instance.event_log_storage
    if GPU_POOL not in {pool.name for pool in storage.get_pool_limits()}:
        storage.initialize_concurrency_limit_to_default(GPU_POOL)


if __name__ == "__main__":
    with dg.DagsterInstance.get() as opened:
        make_gpu_pool_known(opened)
