"""Runs the jobs of a batch in threads, with what is prepared for them meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, as_completed, wait
from typing import Any

from uveitis_assets.stages.batch_outcome import Name
from uveitis_assets.stages.batch_task import Job, Source

# More would let the threads fall far behind what is prepared for them, on a device for example.
_WAITING_JOBS = 16


def run_jobs(
    jobs: Sequence[Job[Source, Name]],
    prepare: Callable[[Sequence[Job[Source, Name]], Executor], Iterator[tuple[Job[Source, Name], Any]] | None],
    process: Callable[[Job[Source, Name], Any], None],
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Processes jobs in threads, or in this one where it is the only worker and nothing is prepared.

    Args:
        jobs: in the order in which they begin, unless ``prepare`` gives another.
        prepare: yields every job with something computed in this thread beforehand; None: nothing.
        process: computes a job; what it raises ends the run.
        workers: threads.
        progress: called with jobs done and jobs to do.
    """
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="batch") as pool:
        prepared = prepare(jobs, pool)
        if prepared is None and workers == 1:
            # A new thread may be given the heap of one that has ended, whose pages the kernel clears anew for
            # each item, see reusable_buffers.
            for n_done, job in enumerate(jobs, start=1):
                process(job, None)
                if progress is not None:
                    progress(n_done, len(jobs))
            return
        try:
            pairs = ((job, None) for job in jobs) if prepared is None else prepared
            for n_done, future in enumerate(_in_threads(pairs, process, pool, workers), start=1):
                future.result()
                if progress is not None:
                    progress(n_done, len(jobs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _in_threads(
    prepared: Iterator[tuple[Job[Source, Name], Any]],
    process: Callable[[Job[Source, Name], Any], None],
    pool: ThreadPoolExecutor,
    workers: int,
) -> Iterator[Future[None]]:
    """Submits jobs as they are prepared, with few waiting at any time; yields those that have ended."""
    waiting: set[Future[None]] = set()
    most = max(_WAITING_JOBS, 2 * workers)
    for job, value in prepared:
        waiting.add(pool.submit(process, job, value))
        if len(waiting) >= most:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from ended
    yield from as_completed(waiting)
