"""The sensor of a detector lane requests what is missing, once, and gives up what does not help."""

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import dagster as dg
import pytest

from uveitis_assets.orchestration.partition_runs import range_tags
from uveitis_assets_tests.components.detector.test_lesion_detector import DETECTOR, LANE
from uveitis_assets_tests.components.running_platform import requested
from uveitis_assets_tests.lane_project import load_project

CHECKPOINT = dg.AssetKey(["parent", "checkpoint"])
PREDICTIONS = dg.AssetKey(["parent", "predictions"])
TILES = dg.AssetKey(["uwf700", "tiles"])
MORE = "  automation: {max_batches_per_run: 3}\n"


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.Definitions]:
    folder = tmp_path_factory.mktemp("sensor")
    with pytest.MonkeyPatch.context() as monkeypatch:
        lanes = {"uwf700": LANE, "parent": DETECTOR.format(name="parent", more=MORE)}
        yield load_project(folder, "sensor_lanes", lanes, monkeypatch)


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return prepared(dg.DagsterInstance.ephemeral())


def prepared(instance: dg.DagsterInstance, *, trained: str = "fold0") -> dg.DagsterInstance:
    """One fold is trained, five batches are registered, and all have tiles."""
    instance.add_dynamic_partitions("uwf700_batches", [f"b0000{number}" for number in range(1, 6)])
    materialize(instance, CHECKPOINT, trained)
    materialize(instance, TILES, *(f"b0000{number}" for number in range(1, 6)))
    return instance


def materialize(
    instance: dg.DagsterInstance, asset: dg.AssetKey, *partitions: str, metadata: dict[str, int] | None = None
) -> None:
    for partition in partitions:
        instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition, metadata=metadata))


def newest_tiles(instance: dg.DagsterInstance, batch: str) -> int:
    filters = dg.AssetRecordsFilter(TILES, asset_partitions=[batch])
    return instance.fetch_materializations(filters, limit=1).records[0].storage_id


def predict(instance: dg.DagsterInstance, *batches: str, tiles: int | None = None) -> None:
    """Predictions of batches by a run that read their newest tiles, or those of the given event."""
    for batch in batches:
        read = newest_tiles(instance, batch) if tiles is None else tiles
        materialize(instance, PREDICTIONS, batch, metadata={"upstream_event_id": read})


def tick(
    definitions: dg.Definitions, instance: dg.DagsterInstance, context: dg.SensorEvaluationContext | None = None
) -> dg.SensorResult | dg.SkipReason:
    context = context or dg.build_sensor_context(instance=instance, definitions=definitions, sensor_name="refresh")
    (sensor,) = (one for one in definitions.sensors or [] if one.name == "parent_predictions_refresh")
    result = sensor(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def asked(definitions: dg.Definitions, instance: dg.DagsterInstance) -> list[tuple[str, str]]:
    result = tick(definitions, instance)
    return [] if isinstance(result, dg.SkipReason) else [(a, b) for a, b, _ in requested(result.run_requests)]


def add_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    tags: dict[str, str],
    job: str = "parent_predictions",
    assets: Sequence[dg.AssetKey] = (),
) -> None:
    instance.add_run(
        dg.DagsterRun(
            job_name=job, run_id=str(uuid.uuid4()), status=status, tags=tags, asset_selection=frozenset(assets) or None
        )
    )


def answer(definitions: dg.Definitions, instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> None:
    """Let all runs that the sensor asks for end like this, without predictions."""
    result = tick(definitions, instance)
    assert isinstance(result, dg.SensorResult)
    for request in result.run_requests or ():
        add_run(instance, status, dict(request.tags))


def test_all_batches_with_newer_tiles_are_requested_in_ranges(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    assert asked(definitions, instance) == [("b00001", "b00003"), ("b00004", "b00005")]
    predict(instance, "b00001", "b00002", "b00004")
    assert asked(definitions, instance) == [("b00003", "b00003"), ("b00005", "b00005")]
    predict(instance, "b00003", "b00005")
    assert asked(definitions, instance) == []
    materialize(instance, TILES, "b00002")
    assert asked(definitions, instance) == [("b00002", "b00002")]


def test_tiles_that_were_made_again_while_they_were_predicted_are_requested_again(
    definitions: dg.Definitions, tmp_path: Path
) -> None:
    # On disk, where events lie in other tables than in memory.
    instance = prepared(dg.DagsterInstance.local_temp(str(tmp_path)))
    predict(instance, "b00001", "b00003", "b00004", "b00005")
    read = newest_tiles(instance, "b00002")
    materialize(instance, TILES, "b00002")
    predict(instance, "b00002", tiles=read)
    assert asked(definitions, instance) == [("b00002", "b00002")]
    predict(instance, "b00002")
    assert asked(definitions, instance) == []


def test_predictions_whose_metadata_lack_the_tiles_they_read_are_made_again(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    predict(instance, "b00001", "b00003", "b00004", "b00005")
    materialize(instance, PREDICTIONS, "b00002")
    assert asked(definitions, instance) == [("b00002", "b00002")]


def test_an_event_in_the_cursor_is_not_fetched_again(definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    predict(instance, *(f"b0000{number}" for number in range(1, 6)))
    context = dg.build_sensor_context(instance=instance, definitions=definitions)
    assert isinstance(tick(definitions, instance, context), dg.SkipReason)
    predict(instance, "b00003", tiles=1)
    later = dg.build_sensor_context(instance=instance, definitions=definitions, cursor=context.cursor)
    with patch.object(instance, "fetch_materializations", wraps=instance.fetch_materializations) as fetched:
        result = tick(definitions, instance, later)
        assert isinstance(result, dg.SensorResult)
        assert requested(result.run_requests) == [("b00003", "b00003", ("predictions",))]
        assert [len(call.args[0].storage_ids) for call in fetched.call_args_list] == [1]
        last = dg.build_sensor_context(instance=instance, definitions=definitions, cursor=later.cursor)
        assert isinstance(tick(definitions, instance, last), dg.SensorResult)
        assert fetched.call_count == 1


def test_batches_in_progress_are_not_requested_again_and_the_others_do_not_wait(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    add_run(instance, dg.DagsterRunStatus.STARTED, range_tags("b00001", "b00002"))
    add_run(
        instance, dg.DagsterRunStatus.NOT_STARTED, {"dagster/partition": "b00005"}, "__ASSET_JOB", assets=[PREDICTIONS]
    )
    assert asked(definitions, instance) == [("b00003", "b00004")]


def test_a_run_whose_process_died_blocks_for_a_day_at_most(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    add_run(instance, dg.DagsterRunStatus.STARTED, range_tags("b00001", "b00005"))
    assert asked(definitions, instance) == []
    tomorrow = (datetime.now(UTC) + timedelta(hours=25)).timestamp()
    with patch("time.time", return_value=tomorrow):
        assert asked(definitions, instance) == [("b00001", "b00003"), ("b00004", "b00005")]


def test_batches_are_predicted_while_a_chosen_fold_is_trained_again(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": "fold0"}, "parent_training")
    add_run(instance, dg.DagsterRunStatus.STARTED, range_tags("fold0", "fold1"), "__ASSET_JOB", [CHECKPOINT])
    assert asked(definitions, instance) == [("b00001", "b00003"), ("b00004", "b00005")]


def test_nothing_is_predicted_while_a_chosen_fold_is_trained_for_the_first_time(definitions: dg.Definitions) -> None:
    instance = prepared(dg.DagsterInstance.ephemeral(), trained="fold1")
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": "fold0"}, "parent_training")
    reason = tick(definitions, instance)
    assert isinstance(reason, dg.SkipReason)
    assert reason.skip_message == "parent/checkpoint lacks fold0"
    materialize(instance, CHECKPOINT, "fold0")
    assert asked(definitions, instance) == [("b00001", "b00003"), ("b00004", "b00005")]


@pytest.mark.parametrize("end", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS])
def test_runs_that_do_not_help_are_requested_three_times_until_the_tiles_change(
    definitions: dg.Definitions, instance: dg.DagsterInstance, end: dg.DagsterRunStatus
) -> None:
    for _ in range(3):
        answer(definitions, instance, end)
    reason = tick(definitions, instance)
    assert isinstance(reason, dg.SkipReason)
    assert "b00001, b00002, b00003, b00004, b00005 were cancelled or did not help 3 times" in str(reason.skip_message)
    materialize(instance, TILES, "b00004")
    assert asked(definitions, instance) == [("b00004", "b00004")]


def test_attempts_are_counted_per_batch_when_others_of_its_range_succeeded(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    answer(definitions, instance, dg.DagsterRunStatus.FAILURE)
    predict(instance, "b00001", "b00003", "b00004", "b00005")
    for _ in range(2):
        answer(definitions, instance, dg.DagsterRunStatus.FAILURE)
    assert asked(definitions, instance) == []


def test_a_cancelled_run_is_not_requested_again(definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    answer(definitions, instance, dg.DagsterRunStatus.CANCELED)
    reason = tick(definitions, instance)
    assert isinstance(reason, dg.SkipReason)
    assert "were cancelled or did not help" in str(reason.skip_message)
