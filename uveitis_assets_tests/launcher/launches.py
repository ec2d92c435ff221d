"""Launch runs with the launcher as Dagster's daemon does, on any engine, and look at what became of them."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import dagster as dg
import docker

# Private, because only Dagster's daemon makes a launcher's context and origin, and no public function does.
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher.base import LaunchRunContext, ResumeRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_shared.record import copy

from uveitis_assets.launcher import GpuDockerRunLauncher


@dg.job
def _job() -> None:
    """Nothing of it is executed: the container gets another program."""


class Launches:
    """One launcher on an instance; ``config`` is the launcher's. Containers execute ``program`` in ``image``."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        *,
        image: str = "registry.example/uveitis:1",
        program: Sequence[str] = ("dagster",),
        **config: Any,
    ) -> None:
        self.instance = instance
        self.launcher = GpuDockerRunLauncher(**config)
        self.launcher.register_instance(instance)
        self._origin = JobPythonOrigin(
            job_name="_job",
            repository_origin=RepositoryPythonOrigin(
                executable_path="/usr/bin/python3",
                code_pointer=ModuleCodePointer("somewhere", "repository"),
                container_image=image,
                entry_point=list(program),
                container_context=None,
            ),
        )

    def launch(
        self,
        tags: Mapping[str, str] | None = None,
        assets: Mapping[str, str] | None = None,
        resume: bool = False,
        code_is_away: bool = False,
    ) -> dg.DagsterRun:
        """Launch a run with these tags that selects these assets (name to GPU need, empty for no tag)."""
        run = self.instance.create_run_for_job(
            _job, tags=dict(tags or {}), status=dg.DagsterRunStatus.STARTING, job_code_origin=self._origin
        )
        run = copy(run, asset_selection=frozenset(dg.AssetKey(name) for name in assets) if assets else None)
        context: type = ResumeRunContext if resume else LaunchRunContext
        start = self.launcher.resume_run if resume else self.launcher.launch_run
        workspace = None if code_is_away else SimpleNamespace(asset_graph=_Graph(assets or {}))
        start(context(dagster_run=run, workspace=workspace))
        return self.run(run.run_id)

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def container(self, run: dg.DagsterRun) -> Any:
        return docker.from_env().containers.get(run.tags["docker/container_id"])

    def messages(self, run: dg.DagsterRun) -> list[str]:
        return [entry.message for entry in self.instance.all_logs(run.run_id)]


class _Graph:
    """The workspace's asset graph, as far as the launcher asks."""

    def __init__(self, needs: Mapping[str, str]) -> None:
        self._needs = {dg.AssetKey(name): need for name, need in needs.items()}

    def asset_keys_for_job(self, job_name: str) -> set[dg.AssetKey]:
        return set()

    def has(self, key: dg.AssetKey) -> bool:
        return key in self._needs

    def get(self, key: dg.AssetKey) -> SimpleNamespace:
        return SimpleNamespace(tags={"uveitis/gpu": self._needs[key]} if self._needs[key] else {})
