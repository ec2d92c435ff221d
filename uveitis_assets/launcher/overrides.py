"""Container options of a single run, from its JSON tag ``docker/container_kwargs``.

A user who may launch a run may set the size of its container; the operator of the deployment decides what it can
reach. So the tag takes a short list of options, and none that mounts, elevates or renames.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from docker.errors import DockerException
from docker.utils import parse_bytes

from uveitis_assets.launcher.refusal import LaunchRefusedError
from uveitis_assets.launcher.run_environment import check_run_variable

OVERRIDES_TAG = "docker/container_kwargs"

_SIZES = {"mem_limit", "memswap_limit", "mem_reservation", "shm_size"}
_WHOLE_NUMBERS = {"nano_cpus", "cpu_shares", "cpu_period", "cpu_quota", "pids_limit", "stop_timeout"}
_TEXTS = {"cpuset_cpus"}
_TEXT_TABLES = {"environment", "labels"}
OVERRIDABLE = frozenset(_SIZES | _WHOLE_NUMBERS | _TEXTS | _TEXT_TABLES)

# Programs that watch the engine act on labels with dots or slashes: proxies route by them, schedulers run commands.
_LABEL = re.compile("[A-Za-z][A-Za-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile("[ -~]{0,256}")


def parse_overrides(run_tags: Mapping[str, str], run_variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read and check the run's ``docker/container_kwargs`` tag; an absent tag gives an empty table.

    ``run_variables`` are the names and patterns that the operator lets runs set beyond ``RUN_VARIABLES``.

    Raises:
        LaunchRefusedError: the tag is not a JSON object, or names an option or a value that a run may not set.
    """
    text = run_tags.get(OVERRIDES_TAG)
    if text is None:
        return {}
    try:
        overrides = json.loads(text)
    except json.JSONDecodeError as error:
        raise _refused(f"is not JSON ({error})") from None
    if not isinstance(overrides, dict):
        raise _refused(f"holds {_named(overrides)}, expected a JSON object")
    for option, value in overrides.items():
        _check_option(option, value, run_variables or {})
    return overrides


def merge_deep(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it: tables are merged key by key, anything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge_deep(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _check_option(option: str, value: object, run_variables: Mapping[str, str]) -> None:
    if option not in OVERRIDABLE:
        raise _refused(f"sets {option!r}, which a run may not; it may set {', '.join(sorted(OVERRIDABLE))}")
    if option in _SIZES:
        _check_size(option, value)
    elif option in _WHOLE_NUMBERS and (isinstance(value, bool) or not isinstance(value, int)):
        raise _refused(f"has {_named(value)} for {option}, expected a whole number")
    elif option in _TEXTS and not isinstance(value, str):
        raise _refused(f"has {_named(value)} for {option}, expected a text")
    elif option in _TEXT_TABLES:
        _check_table(option, value, run_variables)


def _check_size(option: str, value: object) -> None:
    if option == "memswap_limit" and value == -1:
        return
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _refused(f"has {_named(value)} for {option}, expected bytes or a size such as '16g'")
    try:
        size = parse_bytes(value)
    except DockerException:
        size = 0
    if size <= 0:
        raise _refused(f"has {value!r} for {option}, expected bytes or a size such as '16g'")


def _check_table(option: str, value: object, run_variables: Mapping[str, str]) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _refused(f"has {_named(value)} for {option}, expected an object of texts")
    for name, text in value.items():
        problem = _check_label(name, text) if option == "labels" else check_run_variable(name, text, run_variables)
        if problem is not None:
            raise _refused(problem)


def _check_label(name: str, text: str) -> str | None:
    if not _LABEL.fullmatch(name):
        return f"sets {name!r} in labels, expected a name of letters, digits, '_' and '-', 63 at most"
    if not _LABEL_VALUE.fullmatch(text):
        return f"sets {name} in labels, expected a value of 256 printable ASCII characters at most"
    return None


def _named(value: object) -> str:
    return f"{json.dumps(value)} ({type(value).__name__})"


def _refused(what: str) -> LaunchRefusedError:
    return LaunchRefusedError(f"Run tag {OVERRIDES_TAG} {what}. Correct the tag and launch again.")
