"""Fields of ``run_launcher.config`` in ``dagster.yaml`` beyond those of dagster-docker's launcher."""

from __future__ import annotations

from typing import Any

import dagster as dg


def _optional(kind: Any, description: str, **default: Any) -> dg.Field:
    return dg.Field(kind, is_required=False, description=description, **default)


CONFIGURATION_FIELDS: dict[str, dg.Field] = {
    "volumes": _optional(
        dg.Array(dg.StringSource),
        "Mounts of every run container as source:/target or source:/target:ro. The source is a folder of the "
        "engine's host, which has to exist, or the name of a volume.",
    ),
    "read_only_volumes": _optional(
        dg.Array(dg.StringSource),
        "Mounts that no run may write to, such as the raw images; `:rw` is refused here.",
    ),
    "secrets": _optional(
        [str],
        "Names of files in secrets_folder. Each is mounted read-only at /run/secrets/<name> and <NAME>_FILE "
        "holds that path, so that the value appears neither in `docker inspect` nor in Dagster.",
    ),
    "secrets_folder": _optional(dg.StringSource, "Folder of the engine's host that holds the secrets."),
    "run_variables": _optional(
        {str: str},
        "Variables that the tag of a run may set beyond those of the reference page: name and regular expression of "
        "the whole value. Names and patterns by which a run could choose a path, a host or a key are refused.",
    ),
    "user": _optional(
        dg.StringSource,
        "uid:gid of the run containers; `image` keeps the image's user. Default: the uid:gid of the daemon, "
        "so that the files of runs belong to the user of the deployment.",
    ),
    "gpu_runtime": _optional(dg.StringSource, "Name of the engine's GPU runtime.", default_value="nvidia"),
    "gpu_devices": _optional(
        dg.Array(dg.StringSource),
        "GPUs of the host (index, UUID or MIG id). Each GPU run gets the one that the fewest live run "
        "containers hold. Without it a run sees all GPUs.",
    ),
    "deployment": _optional(
        dg.StringSource,
        "Label of this deployment's containers; deployments that share an engine need two names.",
        default_value="uveitis",
    ),
    "log_tail_lines": _optional(int, "Lines of a dead container's log in the failure of its run.", default_value=40),
    "retention_hours": _optional(
        float, "Hours after which stopped run containers of this deployment are removed.", default_value=24.0
    ),
}
