"""Ranges of keys, and steps in which each key succeeds or fails by itself."""

from collections.abc import Iterator
from itertools import pairwise

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uveitis_assets.orchestration.partition_runs import contiguous_ranges, materialize_keys, range_tags
from uveitis_assets_tests.components.running_platform import QUIET

KEYS = [f"b{number:05d}" for number in range(1, 31)]


@given(wanted=st.sets(st.sampled_from(KEYS)), longest=st.integers(1, 12), n_known=st.integers(0, 30))
def test_ranges_cover_exactly_the_wanted_keys_once_in_order_and_are_as_long_as_allowed(
    wanted: set[str], longest: int, n_known: int
) -> None:
    ordered = KEYS[:n_known]
    ranges = contiguous_ranges(ordered, wanted, longest)
    positions = [(ordered.index(first), ordered.index(last)) for first, last in ranges]
    covered = [ordered[position] for first, last in positions for position in range(first, last + 1)]
    assert covered == [key for key in ordered if key in wanted]
    assert all(0 <= last - first < longest for first, last in positions)
    for (first, last), (next_first, _) in pairwise(positions):
        assert next_first > last + 1 or last - first + 1 == longest, "neighbours are only cut at the longest length"


def test_a_failed_key_is_not_tried_again_although_the_asset_has_a_retry_policy() -> None:
    batches = dg.DynamicPartitionsDefinition(name="batches")
    attempts: list[str] = []

    @dg.asset(
        partitions_def=batches,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=dg.RetryPolicy(max_retries=2),
    )
    def counted(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        def work(key: str) -> dict[dg.AssetKey, dict[str, int]]:
            attempts.append(key)
            if key == "b00002":
                raise OSError("the disk is full")
            return {context.asset_key: {"n_images": len(attempts)}}

        yield from materialize_keys(context, [context.asset_key], work, lambda: attempts.append("finish"))

    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("batches", KEYS[:3])
    result = dg.materialize(
        [counted], instance=instance, tags=range_tags("b00001", "b00003"), run_config=QUIET, raise_on_error=False
    )
    assert not result.success
    assert attempts == ["b00001", "b00002", "b00003", "finish"]
    assert instance.get_materialized_partitions(dg.AssetKey("counted")) == {"b00001", "b00003"}


@pytest.mark.parametrize("one_key_fails", [False, True])
def test_a_failing_finish_leaves_the_good_keys_materialized_and_fails_the_run(one_key_fails: bool) -> None:
    batches = dg.DynamicPartitionsDefinition(name="batches")

    def work(key: str) -> dict[dg.AssetKey, dict[str, str]]:
        if one_key_fails and key == "b00002":
            raise OSError("the disk is full")
        return {dg.AssetKey("finished"): {"of": key}}

    def finish() -> None:
        raise ValueError("other/manifest: expected 5 folds, found fewer; materialize it again")

    @dg.asset(partitions_def=batches, backfill_policy=dg.BackfillPolicy.single_run())
    def finished(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        yield from materialize_keys(context, [context.asset_key], work, finish)

    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("batches", KEYS[:3])
    result = dg.materialize(
        [finished], instance=instance, tags=range_tags("b00001", "b00003"), run_config=QUIET, raise_on_error=False
    )
    good = {"b00001", "b00003"} if one_key_fails else set(KEYS[:3])
    assert not result.success
    assert instance.get_materialized_partitions(dg.AssetKey("finished")) == good
    records = instance.fetch_materializations(dg.AssetKey("finished"), limit=10).records
    assert {
        (record.partition_key, record.asset_materialization.metadata["of"].value)
        for record in records
        if record.asset_materialization
    } == {(key, key) for key in good}
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    message = str(failure.user_failure_data.description)
    assert f"{int(one_key_fails)} of 3 partitions failed, the others are done" in message
    assert "what is made over all partitions: ValueError: other/manifest: expected 5 folds" in message
    assert ("[b00002] OSError: the disk is full" in message) == one_key_fails
