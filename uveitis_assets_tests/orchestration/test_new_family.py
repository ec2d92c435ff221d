"""A family that the platform does not know: few lines give it lanes from YAML, partial success, check and sensor."""

import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from uveitis_assets.configuration import Configuration
from uveitis_assets.orchestration.asset_factory import AssetFactory
from uveitis_assets.orchestration.batch_runs import exhausted_batches, keys_in_progress
from uveitis_assets.orchestration.check_results import check_result
from uveitis_assets.orchestration.lane_component import LaneComponent
from uveitis_assets.orchestration.partition_runs import Metadata, materialize_asset, range_tags
from uveitis_assets.orchestration.partitioned_check import partitioned_check
from uveitis_assets.orchestration.request_planner import Wanted, plan_requests
from uveitis_assets_tests.components.running_platform import QUIET, requested
from uveitis_assets_tests.lane_project import load_project

BATCHES = [f"b{number:05d}" for number in range(1, 6)]


class RecordingConfiguration(Configuration):
    name: str
    owners: tuple[str, ...] = ("team:imaging",)
    longest: int = 3


class RecordingDataset(LaneComponent[RecordingConfiguration]):
    """Text files of numbers: their sums, and the mean of each sum."""

    kind = "recording lane"
    model = RecordingConfiguration

    @property
    def lane_name(self) -> str:
        return self.configuration.name

    def lane_definitions(self, context: dg.ComponentLoadContext, lanes: Sequence[LaneComponent[Any]]) -> dg.Definitions:
        lane = self.configuration
        sums_key, means_key = dg.AssetKey([lane.name, "sums"]), dg.AssetKey([lane.name, "means"])
        batches = dg.DynamicPartitionsDefinition(name=f"{lane.name}_batches")
        factory = AssetFactory(lane.name, lane.owners)

        @factory.asset(sums_key, partitions=batches, kinds={"python"}, code_version="1", description="Sum of a file.")
        def sums(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
            def work(batch: str) -> Metadata:
                return {"sum": sum(float(line) for line in landed(batch).read_text().split())}

            yield from materialize_asset(context, sums_key, work)

        @factory.asset(
            means_key,
            deps=[dg.AssetDep(sums_key)],
            partitions=batches,
            kinds={"python"},
            code_version="1",
            uses_gpu=True,
            description="Mean of a file.",
        )
        def means(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
            yield from materialize_asset(context, means_key, lambda batch: {"n_lines": n_lines(batch)})

        def evaluate(_: dg.DagsterInstance, batch: str) -> dg.AssetCheckResult:
            return check_result([] if n_lines(batch) > 1 else [f"{batch}: expected several lines"], [])

        job = dg.define_asset_job(f"{lane.name}_lane", selection=[sums_key, means_key])

        @dg.sensor(name=f"{lane.name}_landing", job=job)
        def landing(context: dg.SensorEvaluationContext) -> dg.SensorResult:
            ordered = context.instance.get_dynamic_partitions(f"{lane.name}_batches")
            assets = (sums_key, means_key)
            made = context.instance.get_materialized_partitions(means_key)
            states = {batch: str(landed(batch).stat().st_size) for batch in ordered if batch not in made}
            plan = plan_requests(
                [Wanted(states, assets, "landed")],
                keys_in_progress(context.instance, [job.name], assets, ordered),
                exhausted_batches(context.instance, job.name, states),
                ordered=ordered,
                longest=lane.longest,
                states=states,
            )
            return dg.SensorResult(run_requests=plan.run_requests, skip_reason=plan.skip_reason("land them again"))

        check = partitioned_check("several_lines", sums_key, batches, "Files have several lines.", lambda: evaluate)
        return dg.Definitions(assets=[sums, means], asset_checks=[check], jobs=[job], sensors=[landing])


def landed(batch: str) -> Path:
    return Path(os.environ["UVEITIS_RAW"]) / f"{batch}.txt"


def n_lines(batch: str) -> int:
    return len(landed(batch).read_text().split())


LANE = f"type: {__name__}.RecordingDataset\nattributes:\n  name: recordings\n"
SUMS, MEANS = dg.AssetKey(["recordings", "sums"]), dg.AssetKey(["recordings", "means"])


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.Definitions]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield load_project(tmp_path_factory.mktemp("project"), "one_recording", {"recordings": LANE}, monkeypatch)


@pytest.fixture(autouse=True)
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five landed batches, of which the second holds no numbers and the fourth one line."""
    monkeypatch.setenv("UVEITIS_RAW", str(tmp_path))
    for batch in BATCHES:
        landed(batch).write_text({"b00002": "none\n", "b00004": "4\n"}.get(batch, "1\n2\n"))


@pytest.fixture
def instance() -> dg.DagsterInstance:
    made = dg.DagsterInstance.ephemeral()
    made.add_dynamic_partitions("recordings_batches", BATCHES)
    return made


def run(definitions: dg.Definitions, instance: dg.DagsterInstance, request: dg.RunRequest) -> bool:
    """Run what was requested, as the daemon would."""
    return (
        definitions.resolve_job_def("recordings_lane")
        .execute_in_process(
            asset_selection=request.asset_selection,
            instance=instance,
            tags=dict(request.tags),
            run_config=QUIET,
            raise_on_error=False,
        )
        .success
    )


def tick(definitions: dg.Definitions, instance: dg.DagsterInstance) -> dg.SensorResult:
    (sensor,) = definitions.sensors or []
    result = sensor(dg.build_sensor_context(instance=instance))
    assert isinstance(result, dg.SensorResult)
    return result


def test_a_range_with_one_failing_key_leaves_the_others_materialized(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    whole = dg.RunRequest(asset_selection=[SUMS], tags=range_tags(BATCHES[0], BATCHES[-1]))
    assert not run(definitions, instance, whole)
    assert instance.get_materialized_partitions(SUMS) == set(BATCHES) - {"b00002"}
    records = instance.fetch_materializations(SUMS, limit=10).records
    metadata = {one.partition_key: one.asset_materialization.metadata for one in records if one.asset_materialization}
    assert {key: value["sum"].value for key, value in metadata.items()} == {
        "b00001": 3.0,
        "b00003": 3.0,
        "b00004": 4.0,
        "b00005": 3.0,
    }
    assert all("duration_s" in value for value in metadata.values())


def test_every_key_has_a_check_result_of_its_own(definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    checks = list(definitions.asset_checks or [])
    result = dg.materialize(
        [*(definitions.assets or []), *checks],
        selection=dg.AssetSelection.checks(dg.AssetCheckKey(SUMS, "several_lines")),
        instance=instance,
        tags=range_tags("b00003", "b00005"),
        run_config=QUIET,
    )
    passed = {str(one.partition): one.passed for one in result.get_asset_check_evaluations()}
    assert passed == {"b00003": True, "b00004": False, "b00005": True}


def test_the_sensor_requests_ranges_until_they_are_made_or_were_tried_three_times(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    first = tick(definitions, instance)
    both = ("means", "sums")
    assert requested(first.run_requests) == [("b00001", "b00003", both), ("b00004", "b00005", both)]
    outcomes = [run(definitions, instance, request) for request in first.run_requests or ()]
    assert outcomes == [False, True]
    # Means of batches whose range failed upstream are not there either.
    second = tick(definitions, instance)
    assert requested(second.run_requests) == [("b00001", "b00003", both)]
    for _ in range(2):
        (request,) = tick(definitions, instance).run_requests or ()
        assert not run(definitions, instance, request)
    last = tick(definitions, instance)
    assert last.run_requests == []
    assert last.skip_reason is not None
    assert "runs of b00001, b00002, b00003 were cancelled or did not help" in str(last.skip_reason)
    landed("b00002").write_text("1\n2\n3\n")
    assert requested(tick(definitions, instance).run_requests) == [("b00002", "b00002", both)]


def test_the_assets_have_group_owners_pool_and_single_run_backfills(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    pools = {asset.key: asset.op.pool for asset in definitions.assets or [] if isinstance(asset, dg.AssetsDefinition)}
    assert pools == {SUMS: None, MEANS: "gpu"}
    for key in (SUMS, MEANS):
        node = graph.get(key)
        assert (node.group_name, sorted(node.owners)) == ("recordings", ["team:imaging"])
        assert node.backfill_policy == dg.BackfillPolicy.single_run()


def test_a_lane_of_a_new_family_shares_no_name_with_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fundus = (
        "type: uveitis_assets.components.fundus_dataset.FundusDataset\n"
        "attributes: {name: recordings, layout: eyepacs, folder: eyepacs}\n"
    )
    with pytest.raises(Exception, match=r"defs\.yaml") as raised:
        load_project(tmp_path, "two_families", {"a": fundus, "b": LANE}, monkeypatch)
    folder = tmp_path / "two_families" / "defs"
    expected = (
        f"recording lane recordings at {folder}/b/defs.yaml:3: expected a name of its own, found that of fundus lane "
        f"recordings at {folder}/a/defs.yaml:2; rename one of them"
    )
    assert expected in "".join(traceback.format_exception(raised.value))


def test_attributes_of_another_model_are_refused_and_those_without_a_file_have_no_places() -> None:
    context = dg.ComponentTree.for_test().load_context
    with pytest.raises(TypeError, match="expected the attributes of RecordingDataset, found None"):
        RecordingDataset.load(None, context)
    with pytest.raises(TypeError, match="expected the attributes of RecordingDataset, found Configuration"):
        RecordingDataset.load(Configuration(), context)
    lane = RecordingDataset.load(RecordingConfiguration(name="recordings"), context)
    assert (lane.lane_name, lane.places) == ("recordings", {})
