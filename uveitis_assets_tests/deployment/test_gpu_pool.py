"""The limit of GPU runs holds from the first look at the queue, and an operator's own limit stays."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets.definitions import defs
from uveitis_assets.deployment.gpu_pool import make_gpu_pool_known
from uveitis_assets.launcher.gpu_need import NEED_TAG
from uveitis_assets.orchestration.pools import GPU_POOL, GPU_TAG


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {granularity: run, default_limit: 1}}\n"
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


def _limits(instance: dg.DagsterInstance) -> dict[str, int]:
    return {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}


def test_a_new_database_knows_the_pool_with_its_default_limit(instance: dg.DagsterInstance) -> None:
    make_gpu_pool_known(instance)
    assert _limits(instance) == {GPU_POOL: 1}


def test_a_limit_that_was_set_for_several_gpus_stays(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots(GPU_POOL, 4)
    make_gpu_pool_known(instance)
    assert _limits(instance) == {GPU_POOL: 4}


def test_the_assets_that_may_use_a_gpu_belong_to_it_and_there_is_no_other_pool() -> None:
    pools = {False: set[str | None](), True: set[str | None]()}
    for assets in defs().assets or []:
        assert isinstance(assets, dg.AssetsDefinition)
        needs = {tags.get(GPU_TAG, "none") for tags in assets.tags_by_key.values()}
        pools[needs != {"none"}].add(assets.op.pool)
    assert pools == {False: {None}, True: {GPU_POOL}}


def test_assets_carry_the_tag_that_launchers_read() -> None:
    assert GPU_TAG == NEED_TAG
