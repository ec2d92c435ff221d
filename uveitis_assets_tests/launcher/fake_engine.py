"""A Docker engine in memory: it keeps what it was asked for, and refuses GPUs in the words of the real one.

The words were copied from Docker 20.10; the tests under docker/ hold the launcher to a real engine.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from docker.errors import APIError, NotFound

NO_GPU_DRIVER = 'could not select device driver "" with capabilities: [[gpu]]'
NEVER = "0001-01-01T00:00:00Z"


@dataclass
class FakeContainer:
    """One container: ``options`` are the keyword arguments of its creation."""

    engine: FakeEngine
    id: str
    options: dict[str, Any]
    status: str = "created"
    attrs: dict[str, Any] = field(default_factory=dict)
    log: bytes = b""

    def __post_init__(self) -> None:
        self.attrs = {"State": {"Status": self.status, "FinishedAt": NEVER}, "Created": "2026-01-01T00:00:00Z"} | (
            self.attrs
        )

    @property
    def name(self) -> str:
        return self.id

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.options["labels"])

    @property
    def environment(self) -> dict[str, str]:
        return dict(self.options["environment"])

    def start(self) -> None:
        if self.options.get("device_requests") and self.engine.gpu_start_error:
            raise APIError("500 Server Error", explanation=self.engine.gpu_start_error)
        if self.engine.start_error:
            raise APIError("500 Server Error", explanation=self.engine.start_error)
        self.status = "running"

    def stop(self, timeout: int | None = None) -> None:
        self.status = "exited"
        self.attrs["State"] = {"Status": "exited", "ExitCode": 143, "FinishedAt": datetime.now(UTC).isoformat()}

    def logs(self, tail: int) -> bytes:
        return b"".join(self.log.splitlines(keepends=True)[-tail:])

    def remove(self, v: bool = False) -> None:
        if self not in self.engine.all:
            raise NotFound("no such container")
        assert self.status != "running", "the real engine refuses to remove a running container"
        self.engine.all.remove(self)


@dataclass
class FakeEngine:
    """Stands for the docker client, its ``containers`` and the engine behind them."""

    runtimes: tuple[str, ...] = ("runc", "nvidia")
    gpu_start_error: str | None = None
    start_error: str | None = None
    create_delay_s: float = 0.0
    all: list[FakeContainer] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def containers(self) -> FakeEngine:
        return self

    def info(self) -> dict[str, Any]:
        return {"Runtimes": {name: {} for name in self.runtimes}}

    def create(self, **options: Any) -> FakeContainer:
        time.sleep(self.create_delay_s)
        container = FakeContainer(self, f"c{next(self._numbers)}", options)
        self.all.append(container)
        return container

    def get(self, container_id: str) -> FakeContainer:
        for container in self.all:
            if container.id == container_id:
                return container
        raise NotFound(f"no such container: {container_id}")

    def ping(self) -> bool:
        return True

    def list(self, *, ignore_removed: bool, filters: dict[str, Any], all: bool = False) -> list[FakeContainer]:
        key, _, value = filters["label"].partition("=")
        wanted = filters["status"] if isinstance(filters["status"], list) else [filters["status"]]
        return [c for c in self.all if key in c.labels and value in ("", c.labels[key]) and c.status in wanted]

    def close(self) -> None:
        """Nothing is open."""
