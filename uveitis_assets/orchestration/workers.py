"""Number of worker threads of a run."""

import os


def worker_count(configured: int) -> int:
    """The configured number, else ``UVEITIS_WORKERS``, else the processors this process may use.

    Raises:
        ValueError: ``UVEITIS_WORKERS`` is no whole number from 1.
    """
    if configured:
        return configured
    text = os.environ.get("UVEITIS_WORKERS", "").strip()
    if not text:
        return len(os.sched_getaffinity(0))
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(
            f"UVEITIS_WORKERS={text}: expected a whole number of threads, at least 1; correct the variable, or unset "
            "it to use all processors"
        )
    return int(text)
