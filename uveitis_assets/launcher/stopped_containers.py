"""Why a run container stopped, and the removal of stopped containers after a while."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from docker.errors import APIError, NotFound

from uveitis_assets.launcher.container_options import DEPLOYMENT_LABEL
from uveitis_assets.launcher.overrides import OVERRIDES_TAG

RUN_LABEL = "dagster/run_id"
STOPPED = ("exited", "dead", "created")
# Without "created", which every container is for a moment before it is started.
_ENDED = ("exited", "dead")
_LOG_TAIL_BYTES = 8192
_CONFLICT = 409
# Of a run whose connection to the database broke: ``deployment.retrying_postgres``.
_LOST_DATABASE = 75
_SIGNALS = {137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}


def lost_its_database(container: Any) -> bool:
    """Whether the run ended because its connection to Dagster's database broke."""
    return bool(container.attrs["State"].get("ExitCode") == _LOST_DATABASE)


def describe_exit(container: Any, log_tail_lines: int) -> str:
    """Why the container stopped, as text, and the last lines of its log."""
    return f"{_exit_cause(container.attrs)}\n{log_tail(container, log_tail_lines)}"


def _exit_cause(attrs: Mapping[str, Any]) -> str:
    state = attrs["State"]
    limit = attrs.get("HostConfig", {}).get("Memory") or 0
    code = state.get("ExitCode")
    if state.get("OOMKilled"):
        if limit:
            return (
                f"Out of memory (OOM): the kernel killed the run container at its memory limit of "
                f"{limit / 2**20:.0f} MiB (exit code {code}). Give the run a larger limit, for example with the tag "
                f'{OVERRIDES_TAG}={{"mem_limit": "{2 * limit // 2**20}m"}}, or a smaller batch or fewer workers.'
            )
        return (
            f"Out of memory (OOM): the kernel killed the run container (exit code {code}), which has no memory limit "
            f"of its own: the host ran out. Run fewer at a time, or a smaller batch or fewer workers."
        )
    if code in _SIGNALS:
        return (
            f"The run container was ended by {_SIGNALS[code]} (exit code {code}) from outside or by a crash, not by "
            f"its memory limit."
        )
    if code == _LOST_DATABASE:
        return f"The run lost its connection to Dagster's database and ended (exit code {code}), to be retried."
    error = f" The engine reports: {state['Error']}" if state.get("Error") else ""
    return f"The run container is {state.get('Status')} with exit code {code} though its run had not ended.{error}"


def log_tail(container: Any, lines: int) -> str:
    """The container's last log lines, at most 8 KiB of them, or why they cannot be read."""
    try:
        raw = bytes(container.logs(tail=lines))
    except APIError as error:
        return f"Its log cannot be read: {error}"
    text = raw[-_LOG_TAIL_BYTES:].decode("utf-8", errors="replace").strip()
    return f"Last lines of its log:\n{text}" if text else "Its log is empty."


def remove_expired(
    client: Any, deployment: str, retention: timedelta, now: datetime, is_active: Callable[[str], bool]
) -> list[str]:
    """Remove this deployment's containers that stopped over ``retention`` ago; return their names.

    Containers of other deployments, running ones and those whose run is still active stay: monitoring has yet to
    read the reason from them.
    """
    stopped = client.containers.list(
        all=True,
        ignore_removed=True,
        filters={"label": f"{DEPLOYMENT_LABEL}={deployment}", "status": list(STOPPED)},
    )
    removed = []
    for container in sorted(stopped, key=lambda container: str(container.name)):
        labels = container.labels
        if container.status not in STOPPED or labels.get(DEPLOYMENT_LABEL) != deployment:
            continue
        if now - _ended_at(container.attrs) <= retention or is_active(labels.get(RUN_LABEL, "")):
            continue
        try:
            container.remove(v=True)
        except NotFound:
            continue
        except APIError as error:
            if error.status_code == _CONFLICT:  # another process is removing it
                continue
            raise
        removed.append(str(container.name))
    return removed


def ended_container(client: Any, run_id: str) -> Any | None:
    """The container of this run if its program has ended, else None."""
    ended = client.containers.list(
        # By label: a retry has its parent's container in its tags until it has one of its own.
        all=True,
        ignore_removed=True,
        filters={"label": f"{RUN_LABEL}={run_id}", "status": list(_ENDED)},
    )
    return ended[0] if ended else None


def stop_abandoned(client: Any, deployment: str, ended_long_ago: Callable[[str], bool]) -> list[str]:
    """Stop this deployment's live run containers whose run ended long ago; return their names.

    Such a container remains when its run was marked as cancelled, or failed by a time-out, while it went on.
    """
    live = client.containers.list(
        ignore_removed=True, filters={"label": f"{DEPLOYMENT_LABEL}={deployment}", "status": "running"}
    )
    stopped = []
    for container in sorted(live, key=lambda container: str(container.name)):
        if ended_long_ago(container.labels.get(RUN_LABEL, "")):
            container.stop()
            stopped.append(str(container.name))
    return stopped


def _ended_at(attrs: Mapping[str, Any]) -> datetime:
    finished = str(attrs["State"].get("FinishedAt") or "")
    # A container that never started finished in the year 1, as the engine puts it.
    moment = attrs["Created"] if finished.startswith("0001-") or not finished else finished
    return datetime.fromisoformat(moment)
