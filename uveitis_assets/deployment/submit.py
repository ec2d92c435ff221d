"""Queue runs on the deployment and follow them until they end.

Runs execute in the deployment's containers, with its queue, its limits and its retries. When the web server is away
for a while, following waits for it; the runs go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from uveitis_assets.deployment.graphql_client import WebserverUnreachableError
from uveitis_assets.deployment.submission_plan import PlannedRun, Wanted, plan_stages, select_assets
from uveitis_assets.deployment.webserver import RunState, Webserver

_Answer = TypeVar("_Answer")

_POLL_S = 1.0
# How long the web server may be away, and how long the daemon may take to retry a run.
_WEBSERVER_TIMEOUT_S = 300.0
_RETRY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """The end of one planned run, retries included."""

    planned: PlannedRun
    run_id: str
    status: str
    failures: tuple[str, ...]

    @property
    def succeeded(self) -> bool:
        return self.status == "SUCCESS"


def submit_and_follow(
    url: str, names: Sequence[str], wanted: Wanted, *, tags: Mapping[str, str], longest: int, console: Console
) -> bool:
    """Queue what ``names`` and ``wanted`` ask for, stage by stage, and print the status of each run.

    Args:
        url: the deployment's UI.
        names: assets, and lanes as a whole.
        wanted: partitions.
        tags: of each run, beside those that name its partitions.
        longest: most partitions of one run.
        console: where to print.

    Returns:
        Whether every run succeeded. A stage whose runs did not all succeed is the last.

    Raises:
        SubmissionError: arguments that exclude each other, or what the deployment does not have; nothing was queued.
        WebserverError: the web server does not answer, or refused a run.
    """
    wanted.check()
    webserver = Webserver(url)
    known = webserver.assets()
    whole_lanes = {name for name in names if "/" not in name}
    stages = plan_stages(select_assets(known, names), whole_lanes, wanted, longest, webserver.materialized)
    total = sum(len(stage) for stage in stages)
    if not total:
        console.print("Nothing is missing.")
        return True
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs", total=total)

        def on_change(planned: PlannedRun, state: RunState) -> None:
            device = f" on {state.device}" if state.device and state.status != "QUEUED" else ""
            retried = ", will be retried" if state.status == "FAILURE" and state.will_retry else ""
            _print(console, f"{planned.what}: {state.status.lower()}{device}{retried}  {url}/runs/{state.run_id}")
            if state.is_finished and not retried:
                progress.advance(task)

        for stage in stages:
            try:
                ends = follow(webserver, launch_stage(webserver, stage, tags), on_change)
            except KeyboardInterrupt:
                _print(console, f"Stopped following; what is queued goes on. See {url}/runs")
                raise
            failed = [end for end in ends if not end.succeeded]
            for end in failed:
                _print(console, f"{end.planned.what}: {end.status.lower()}", style="red")
                for failure in end.failures:
                    _print(console, f"  {failure}", style="red")
            if failed:
                return False
    return True


def _print(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def launch_stage(webserver: Webserver, stage: Sequence[PlannedRun], tags: Mapping[str, str]) -> dict[str, PlannedRun]:
    """Queue all runs of a stage, with ``tags`` on each; returns them by run id."""
    launched: dict[str, PlannedRun] = {}
    for planned in stage:
        keys = [asset.key for asset in planned.assets]
        launched[webserver.launch(planned.assets[0], planned.job, keys, {**tags, **planned.tags})] = planned
    return launched


def follow(
    webserver: Webserver,
    launched: Mapping[str, PlannedRun],
    on_change: Callable[[PlannedRun, RunState], None],
    poll_s: float = _POLL_S,
) -> list[FinishedRun]:
    """Wait for the end of every run and its retries; returns the ends in the order of launching.

    Args:
        webserver: where the runs are.
        launched: runs by id.
        on_change: called whenever a run, or a retry of it, has another status.
        poll_s: seconds between two polls.

    Raises:
        WebserverUnreachableError: nothing answered for five minutes; the runs go on.
        WebserverError: the web server answered something else.
    """
    current = dict.fromkeys(launched, "")
    of_origin = {origin: origin for origin in launched}
    ended: dict[str, RunState] = {}
    waiting_since: dict[str, float] = {}
    while len(ended) < len(launched):
        states = _wait_for_webserver(
            lambda: webserver.runs([of_origin[origin] for origin in launched if origin not in ended])
        )
        for origin in launched:
            if origin in ended:
                continue
            state = states[of_origin[origin]]
            if f"{state.run_id} {state.status}" != current[origin]:
                current[origin] = f"{state.run_id} {state.status}"
                on_change(launched[origin], state)
            if not state.is_finished:
                continue
            if state.status == "FAILURE" and state.retried_by:
                of_origin[origin] = state.retried_by
                waiting_since.pop(origin, None)
            elif state.status == "FAILURE" and state.will_retry:
                since = waiting_since.setdefault(origin, time.monotonic())
                if time.monotonic() - since > _RETRY_TIMEOUT_S:
                    ended[origin] = state
            else:
                ended[origin] = state
        if len(ended) < len(launched):
            time.sleep(poll_s)
    return [_finished(webserver, launched[origin], ended[origin]) for origin in launched]


def _finished(webserver: Webserver, planned: PlannedRun, state: RunState) -> FinishedRun:
    failures: Sequence[str] = ()
    if state.status != "SUCCESS":
        failures = _wait_for_webserver(lambda: webserver.failures(state.run_id))
    return FinishedRun(planned=planned, run_id=state.run_id, status=state.status, failures=tuple(failures))


def _wait_for_webserver(call: Callable[[], _Answer]) -> _Answer:
    deadline = time.monotonic() + _WEBSERVER_TIMEOUT_S
    while True:
        try:
            return call()
        except WebserverUnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
