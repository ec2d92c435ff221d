"""Runs in Docker containers, with a GPU where the run needs one and the host has one.

``dagster.yaml`` of a deployment names the class: ``module: uveitis_assets.launcher, class: GpuDockerRunLauncher``.
Nothing here computes on images, and nothing imports torch: the launcher runs inside the daemon.
"""

from uveitis_assets.launcher.docker_run_launcher import GpuDockerRunLauncher

__all__ = ["GpuDockerRunLauncher"]
