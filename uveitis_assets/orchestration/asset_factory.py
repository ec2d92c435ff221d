"""Makes the assets of a lane, with what all assets of the platform have in common.

A run over several partition keys is one step (``single_run``), in which each key succeeds or fails by itself
(partition_runs.py). An asset that uses a GPU waits for a slot of the pool and has the tag that launchers read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from uveitis_assets.orchestration.pools import GPU_POOL, GPU_TAG

Decorator = Callable[[Callable[..., Any]], dg.AssetsDefinition]


@dataclass(frozen=True)
class AssetFactory:
    """Decorators of a lane's asset functions; all assets are of one group and have the same owners."""

    group: str
    owners: Sequence[str]

    def asset(
        self,
        key: dg.AssetKey,
        *,
        kinds: set[str],
        code_version: str,
        description: str,
        deps: Iterable[dg.AssetDep] = (),
        partitions: dg.PartitionsDefinition[str] | None = None,
        uses_gpu: bool = False,
        trains: bool = False,
        configuration: Mapping[str, object] | None = None,
    ) -> Decorator:
        """Decorate the function of an asset that is a step by itself.

        Args:
            key: of the asset.
            kinds: technologies whose icons the UI shows.
            code_version: raised whenever the same input gives another result.
            description: Markdown for the UI.
            deps: assets that it reads.
            partitions: its keys; None makes it an asset without partitions.
            uses_gpu: its runs wait for a slot of the GPU pool.
            trains: its runs do without a GPU only where the deployment declares none.
            configuration: what the UI shows beside the asset.
        """
        return dg.asset(
            key=key,
            deps=list(deps),
            partitions_def=partitions,
            backfill_policy=None if partitions is None else dg.BackfillPolicy.single_run(),
            group_name=self.group,
            owners=list(self.owners),
            kinds=kinds,
            code_version=code_version,
            pool=GPU_POOL if uses_gpu else None,
            tags={GPU_TAG: "required-if-declared" if trains else "preferred"} if uses_gpu else None,
            metadata=_metadata(configuration),
            description=description.strip(),
        )

    def spec(
        self,
        key: dg.AssetKey,
        *,
        kinds: set[str],
        code_version: str,
        description: str,
        deps: Iterable[dg.AssetKey],
        partitions: dg.PartitionsDefinition[str],
        uses_gpu: bool,
        configuration: Mapping[str, object],
    ) -> dg.AssetSpec:
        """Describe one of several assets that a step makes together; arguments as for ``asset``."""
        return dg.AssetSpec(
            key,
            deps=list(deps),
            partitions_def=partitions,
            group_name=self.group,
            owners=list(self.owners),
            kinds=kinds,
            code_version=code_version,
            tags={GPU_TAG: "preferred" if uses_gpu else "none"},
            metadata=_metadata(configuration),
            description=description.strip(),
            skippable=True,
        )

    def step(self, name: str, specs: Sequence[dg.AssetSpec]) -> Decorator:
        """Decorate the function of a step that makes several assets, of which a run may select some."""
        partitions = {spec.partitions_def for spec in specs}
        if len(partitions) != 1:
            raise ValueError(f"{name}: expected assets of the same partitions, found {len(partitions)} kinds of them")
        return dg.multi_asset(
            name=name,
            specs=specs,
            can_subset=True,
            partitions_def=partitions.pop(),
            backfill_policy=dg.BackfillPolicy.single_run(),
            pool=GPU_POOL if any(spec.tags[GPU_TAG] == "preferred" for spec in specs) else None,
        )


def _metadata(configuration: Mapping[str, object] | None) -> dict[str, dg.MetadataValue[Any]] | None:
    return None if configuration is None else {"configuration": dg.MetadataValue.json(dict(configuration))}
