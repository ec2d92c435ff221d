"""An instance of Dagster whose connections to its database break, and what its runs leave behind all the same."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy

# Private: what a run's container calls, less the process.
from dagster._cli.api import _execute_run_command_body

from uveitis_assets_tests.deployment import interrupted_job
from uveitis_assets_tests.deployment.breaking_postgres import Moment, Server, Wire


class Breaks:
    """Where the wire breaks while an instance is at work: nowhere.

    Attributes:
        heard: How many statements each operation of the storages has sent, one number per operation.
        broken: At how many statements the wire broke.
        also: What else happens when it breaks.
    """

    def __init__(self, also: Callable[[], None] = lambda: None) -> None:
        self.also = also
        self.heard = [0]
        self.broken = 0
        self._depth = 0

    def here(self, statement: str) -> Moment | None:
        """Whether the wire breaks at this statement."""
        return None

    @contextmanager
    def at_work(self, wire: Wire, instance: dg.DagsterInstance | None = None) -> Iterator[None]:
        """Have the wire break; without an instance, whose operations could be told apart, all is one operation."""
        if instance is not None:
            self._tell_operations_apart(instance.run_storage)
            self._tell_operations_apart(instance.event_log_storage)
        wire.breaks, wire.also = self._hear, self.also
        try:
            yield
        finally:
            wire.breaks = lambda _statement: None

    def _hear(self, statement: str) -> Moment | None:
        self.heard[-1] += 1
        moment = self.here(statement)
        self.broken += moment is not None
        return moment

    def _tell_operations_apart(self, storage: object) -> None:
        for name, _ in inspect.getmembers(type(storage), inspect.isfunction):
            if not name.startswith("_"):
                setattr(storage, name, functools.partial(self._operate, getattr(storage, name)))

    def _operate(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._depth == 0:
            self.heard.append(0)
        self._depth += 1
        try:
            return operation(*args, **kwargs)
        finally:
            self._depth -= 1


class AtNumber(Breaks):
    """Breaks at the statement of this number of every operation, once each."""

    def __init__(self, number: int, moment: Moment) -> None:
        super().__init__()
        self._number = number
        self._moment = moment

    def here(self, statement: str) -> Moment | None:
        return self._moment if self.heard[-1] == self._number else None


class AtEveryStatement(Breaks):
    """Breaks when a statement is sent for the first time, so also in what is repeated."""

    def __init__(self, moment: Moment) -> None:
        super().__init__()
        self._moment = moment
        self._known = set[str]()

    def here(self, statement: str) -> Moment | None:
        if statement in self._known:
            return None
        self._known.add(statement)
        return self._moment


class Crashes(Breaks):
    """Breaks at every ``step``-th statement, and the server crashes."""

    def __init__(self, step: int, moment: Moment, crash: Callable[[], None]) -> None:
        super().__init__(crash)
        self._step = step
        self._moment = moment

    def here(self, statement: str) -> Moment | None:
        return self._moment if sum(self.heard) % self._step == 0 else None


class Deployment:
    """An instance of Dagster at the other end of a wire."""

    def __init__(self, server: Server, wire: Wire, home: Path) -> None:
        self.wire = wire
        self._database = sqlalchemy.create_engine(server.url, poolclass=sqlalchemy.NullPool)
        self._home = home
        (home / "dagster.yaml").write_text(
            f"""
            telemetry: {{enabled: false}}
            concurrency: {{pools: {{granularity: op, default_limit: 1}}}}
            run_retries: {{enabled: true, max_retries: 2, retry_on_asset_or_op_failure: false}}
            storage:
              custom:
                module: uveitis_assets.deployment.retrying_postgres
                class: RetryingPostgresStorage
                config: {{postgres_url: "{wire.url}"}}
            """
        )

    def open(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self._home))

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Rows of the database, read beside the wire."""
        with self._database.connect() as connection:
            return [tuple(row) for row in connection.execute(sqlalchemy.text(query), values)]

    def run(self, job: Callable[[], dg.JobDefinition], breaks: Breaks) -> str:
        """Run a job as the container of a run does, on a wire that breaks; returns the run's id."""
        code = dg.reconstructable(job)
        with self.open() as instance:
            instance.event_log_storage.delete_concurrency_limit(interrupted_job.POOL)
            instance.add_dynamic_partitions(interrupted_job.ALBUMS, interrupted_job.KEYS)
            run = instance.create_run_for_job(
                code.get_definition(),
                job_code_origin=code.get_python_origin(),
                tags={"dagster/asset_partition_range_start": "left", "dagster/asset_partition_range_end": "right"},
            )
        with self.open() as instance, breaks.at_work(self.wire, instance):
            _execute_run_command_body(run.run_id, instance, lambda _event: None, set_exit_code_on_failure=True)
        return run.run_id

    @functools.cache  # noqa: B019 (there is one deployment)
    def undisturbed(self, job: Callable[[], dg.JobDefinition]) -> tuple[Mapping[str, Any], list[int]]:
        """What a run of the job leaves behind, and the number of statements that each of its operations sends."""
        nowhere = Breaks()
        return self.left_behind(self.run(job, nowhere)), nowhere.heard

    def left_behind(self, run_id: str) -> Mapping[str, Any]:
        """What a run has left in the database, events by their place in the log, without what differs between runs."""

        def of_run(query: str) -> list[tuple[Any, ...]]:
            return self.rows(query, run=run_id)

        log = of_run("SELECT id, event FROM event_logs WHERE run_id = :run ORDER BY id")
        place = {event_id: number for number, (event_id, _) in enumerate(log)}
        tags = of_run(
            "SELECT event_id, t.asset_key, key, value FROM asset_event_tags t JOIN event_logs e ON e.id = event_id "
            "WHERE run_id = :run"
        )
        checks = of_run(
            "SELECT evaluation_event_storage_id, materialization_event_storage_id, check_name, partition, "
            "execution_status, evaluation_event FROM asset_check_executions WHERE run_id = :run ORDER BY id"
        )
        assets = of_run(
            "SELECT asset_key, (last_materialization::json ->> 'storage_id')::int FROM asset_keys "
            "WHERE last_run_id = :run ORDER BY asset_key"
        )
        run = of_run("SELECT run_body, status, start_time, end_time FROM runs WHERE run_id = :run")
        return {
            "events": [_plain(event, run_id) for _, event in log],
            "tags": sorted((place[event], asset, key, _plain(value, run_id)) for event, asset, key, value in tags),
            "checks": [(place[event], place.get(of), *row, _plain(text, run_id)) for event, of, *row, text in checks],
            "assets": [(asset, place.get(event)) for asset, event in assets],
            "status": [status for _, status, *_ in run],
            "run": [_plain(str(row), run_id) for row in run],
            "run tags": of_run("SELECT key, value FROM run_tags WHERE run_id = :run ORDER BY key"),
            "places in pools": self.rows("SELECT concurrency_key, run_id, step_key FROM concurrency_slots ORDER BY id"),
            "lines": self.rows("SELECT concurrency_key, run_id, step_key FROM pending_steps"),
        }


def _plain(text: str, run_id: str) -> str:
    text = re.sub(r'"(file|log)_key": "\w+"', "", text.replace(run_id, "RUN"))
    text = re.sub(r"\b[\d.]+(ms|s)\b", "DURATION", text)
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "#", re.sub("[0-9a-f]{64}", "HASH", text))
