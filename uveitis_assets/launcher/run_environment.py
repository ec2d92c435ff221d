"""Environment variables that the tag of one run may set: names, each with a pattern of its values.

A list of what is refused cannot be complete, because every library reads variables of its own: hosts, proxies, key
files, folders, modules to load. So a run may set numbers of threads and flags, none of which names a path, a host, a
file or a program. The operator may add names with patterns, but none of those that are always reserved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_COUNT = "[1-9][0-9]{0,3}"
_FLAG = "[01]"
RUN_VARIABLES: Mapping[str, str] = {
    # Our own.
    "UVEITIS_WORKERS": _COUNT,
    # Threads of numeric libraries.
    "OMP_NUM_THREADS": _COUNT,
    "MKL_NUM_THREADS": _COUNT,
    "NUMEXPR_NUM_THREADS": _COUNT,
    "OPENBLAS_NUM_THREADS": _COUNT,
    "OPENCV_FOR_THREADS_NUM": _COUNT,
    "POLARS_MAX_THREADS": _COUNT,
    # Memory of the allocators.
    "MALLOC_ARENA_MAX": _COUNT,
    "PYTORCH_CUDA_ALLOC_CONF": (
        r"(?:expandable_segments:(?:True|False)|max_split_size_mb:[0-9]{1,6}|garbage_collection_threshold:0\.[0-9]{1,3})"
        r"(?:,(?:expandable_segments:(?:True|False)|max_split_size_mb:[0-9]{1,6}"
        r"|garbage_collection_threshold:0\.[0-9]{1,3})){0,2}"
    ),
    # Finding faults on a GPU, and results that repeat.
    "CUBLAS_WORKSPACE_CONFIG": ":(?:4096:8|16:8)",
    "CUDA_LAUNCH_BLOCKING": _FLAG,
    "NCCL_DEBUG": "VERSION|WARN|INFO",
    "NCCL_IB_DISABLE": _FLAG,
    "NCCL_P2P_DISABLE": _FLAG,
    "TORCH_CPP_LOG_LEVEL": "INFO|WARNING|ERROR|FATAL",
    # Keeps a training's numbers on this machine.
    "WANDB_MODE": "offline|disabled",
    "WANDB_SILENT": "true|false",
}

_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
# Where a run reports and what it sees, what loader, shell and interpreter run before the program, and what clients of
# databases, engines, clouds and trackers connect to.
_RESERVED_PREFIXES = (
    *("DAGSTER_", "NVIDIA_", "CUDA_VISIBLE_DEVICES", "UVEITIS_"),
    *("LD_", "GLIBC_", "GCONV_", "PYTHON", "PATH", "HOME", "SHELL", "BASH", "ENV", "IFS", "TMP", "TEMP", "XDG_"),
    *("POSTGRES", "PG", "DOCKER_", "AWS_", "AZURE_", "GOOGLE_", "GCLOUD_", "SSL", "CURL_", "REQUESTS_", "GIT_"),
)
# Words between underscores of names that choose such things in any library.
_RESERVED_WORDS = frozenset(
    {"FILE", "FILES", "PATH", "PATHS", "DIR", "DIRS", "DIRECTORY", "FOLDER", "HOME", "ROOT", "CACHE", "CONFIG"}
    | {"LIBRARY", "LIBRARIES", "PRELOAD", "PLUGIN", "PLUGINS", "EXECUTABLE", "COMMAND"}
    | {"KEY", "KEYS", "PASSWORD", "PASSWD", "SECRET", "TOKEN", "CREDENTIALS", "CERT", "BUNDLE"}
    | {"URL", "URI", "HOST", "HOSTNAME", "PORT", "ADDR", "ADDRESS", "ENDPOINT", "SERVER", "PROXY"}
)
_PROBES = ("/etc/passwd", "../ledger/patient_key", "http://192.0.2.1:8080/", "192.0.2.1", "host.example")


def check_run_variable(name: str, value: str, further: Mapping[str, str]) -> str | None:
    """What is wrong with a variable that a run's tag sets, or None.

    ``further`` holds the names and patterns that the operator added.
    """
    patterns = {**further, **RUN_VARIABLES}
    pattern = patterns.get(name)
    if pattern is None:
        return f"sets {name!r} in environment, which a run may not; it may set {', '.join(sorted(patterns))}"
    if not re.fullmatch(pattern, value):
        # The value is not repeated: it may be long, or a secret pasted in the wrong place.
        return f"sets {name} in environment to a value that does not match {pattern}"
    return None


def check_further_variables(further: Mapping[str, str]) -> None:
    """Check the operator's names and patterns, the launcher's ``run_variables``.

    Raises:
        ValueError: a name is reserved or already has a pattern, or a pattern is invalid or accepts paths or hosts.
    """
    for name, pattern in further.items():
        where = f"run_variables: {name!r}"
        if not _NAME.fullmatch(name):
            raise ValueError(f"{where} is not a name of letters, digits and underscores; correct it")
        if name in RUN_VARIABLES:
            raise ValueError(f"{where} may be set by every run already, as {RUN_VARIABLES[name]}; remove the line")
        if _is_reserved(name):
            raise ValueError(
                f"{where} is reserved: it may choose a path, host, key or program of the run. Set it for all runs in "
                "env_vars, and remove it here"
            )
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{where}: {pattern!r} is not a regular expression ({error}); correct it") from None
        accepted = [probe for probe in _PROBES if compiled.fullmatch(probe)]
        if accepted:
            raise ValueError(
                f"{where}: {pattern!r} accepts {accepted[0]!r}, and a run may choose no path and no host; narrow the "
                "pattern, for example to numbers or to words without '.' and '/'"
            )


def _is_reserved(name: str) -> bool:
    upper = name.upper()
    return upper.startswith(_RESERVED_PREFIXES) or not _RESERVED_WORDS.isdisjoint(upper.split("_"))
