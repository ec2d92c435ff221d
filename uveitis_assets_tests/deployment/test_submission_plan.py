"""Which runs a submission turns into, on assets made up for it."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from uveitis_assets.deployment.submission_plan import PlannedRun, SubmissionError, Wanted, plan_stages, select_assets
from uveitis_assets.deployment.submit import submit_and_follow
from uveitis_assets.deployment.webserver import DeployedAsset

BATCHES = ("b00001", "b00002", "b00003", "b00004", "b00005")
FOLDS = ("fold0|train", "fold0|val", "fold1|train", "fold1|val")


def _asset(key: str, *upstream: str, partitions: tuple[str, ...] = BATCHES, **changes: object) -> DeployedAsset:
    dimensions = ("fold", "split") if "|" in "".join(partitions) else ("default",)
    asset = DeployedAsset(
        key=key,
        jobs=("__ASSET_JOB",),
        upstream=frozenset(upstream),
        is_partitioned=bool(partitions),
        partitions=partitions,
        partitions_name=f"{key.partition('/')[0]}_batches" if partitions == BATCHES else None,
        dimensions=dimensions if partitions else (),
        longest_range=None,
        repository="__repository__",
        location="uveitis_assets",
    )
    return replace(asset, **changes)  # type: ignore[arg-type]


LANE = [
    _asset("uwf/manifest", jobs=("__ASSET_JOB", "uwf_lane")),
    _asset("uwf/tiles", "uwf/manifest", jobs=("__ASSET_JOB", "uwf_lane")),
    _asset("uwf/labels", "uwf/tiles", partitions=FOLDS, jobs=("__ASSET_JOB", "uwf_labels")),
    _asset("other/manifest"),
    _asset("reference", partitions=()),
]


def _plan(
    names: list[str], wanted: Wanted, made: dict[str, set[str]] | None = None, longest: int = 16
) -> list[list[PlannedRun]]:
    whole = {name for name in names if "/" not in name}
    return plan_stages(select_assets(LANE, names), whole, wanted, longest, lambda asset: (made or {})[asset.key])


def _spans(stage: list[PlannedRun]) -> list[tuple[str, ...]]:
    return [tuple(value for _, value in sorted(run.tags.items(), reverse=True)) for run in stage]


def test_one_partition_is_one_run_of_the_job_that_has_the_asset() -> None:
    [[run]] = _plan(["uwf/tiles"], Wanted(partition="b00002"))
    assert [asset.key for asset in run.assets] == ["uwf/tiles"]
    assert run.job == "uwf_lane"
    assert run.tags == {"dagster/partition": "b00002"}
    assert run.what == "uwf/tiles[b00002]"


def test_a_partition_of_two_dimensions_names_both() -> None:
    [[run]] = _plan(["uwf/labels"], Wanted(partition="fold1|train"))
    assert run.tags == {
        "dagster/partition": "fold1|train",
        "dagster/partition/fold": "fold1",
        "dagster/partition/split": "train",
    }


def test_a_range_is_cut_into_runs_of_the_longest_length() -> None:
    [stage] = _plan(["uwf/tiles"], Wanted(partition_range="b00001...b00005"), longest=2)
    assert _spans(stage) == [("b00001", "b00002"), ("b00003", "b00004"), ("b00005",)]


def test_an_asset_without_ranges_gets_a_run_per_partition() -> None:
    single = [replace(LANE[1], longest_range=1)]
    [stage] = plan_stages(single, set(), Wanted(everything=True), 16, lambda _: set())
    assert [run.what for run in stage] == [f"uwf/tiles[{key}]" for key in BATCHES]


def test_missing_partitions_are_those_that_one_of_the_assets_lacks() -> None:
    made = {"uwf/manifest": set(BATCHES), "uwf/tiles": {"b00002", "b00004"}}
    [stage] = _plan(["uwf/manifest", "uwf/tiles"], Wanted(missing=True), made)
    assert _spans(stage) == [("b00001",), ("b00003",), ("b00005",)]


def test_nothing_missing_is_no_run() -> None:
    assert _plan(["uwf/tiles"], Wanted(missing=True), {"uwf/tiles": set(BATCHES)}) == []


def test_a_whole_lane_runs_its_batches_before_its_labels() -> None:
    batches, labels = _plan(["uwf"], Wanted(everything=True))
    assert [[asset.key for asset in run.assets] for run in batches] == [["uwf/manifest", "uwf/tiles"]]
    assert [run.job for run in labels] == ["uwf_labels"]
    assert labels[0].tags == {
        "dagster/asset_partition_range_start": "fold0|train",
        "dagster/asset_partition_range_end": "fold1|val",
    }


def test_a_batch_of_a_whole_lane_leaves_its_labels_out() -> None:
    [[run]] = _plan(["uwf"], Wanted(partition="b00001"))
    assert [asset.key for asset in run.assets] == ["uwf/manifest", "uwf/tiles"]


def test_assets_that_come_back_to_batches_after_labels_wait_for_them() -> None:
    model = _asset("model/checkpoint", "uwf/labels", partitions=("fold0", "fold1"))
    predictions = _asset("model/predictions", "model/checkpoint", "uwf/tiles", partitions_name="uwf_batches")
    chosen = [LANE[1], LANE[2], model, predictions]
    stages = plan_stages(chosen, set(), Wanted(everything=True), 16, lambda _: set())
    assert [[asset.key for asset in stage[0].assets] for stage in stages] == [
        ["uwf/tiles"],
        ["uwf/labels"],
        ["model/checkpoint"],
        ["model/predictions"],
    ]


def test_lanes_do_not_share_runs_although_their_batches_are_called_the_same() -> None:
    stages = _plan(["uwf/manifest", "other/manifest"], Wanted(partition="b00001"))
    assert [run.what for stage in stages for run in stage] == ["other/manifest[b00001]", "uwf/manifest[b00001]"]


def test_an_asset_without_partitions_is_one_run_or_none_when_it_is_there() -> None:
    [[run]] = _plan(["reference"], Wanted())
    assert run.tags == {}
    assert _plan(["reference"], Wanted(missing=True), {"reference": {""}}) == []


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (["uwf/tile"], Wanted(partition="b00001"), "uwf/tile: found no such asset or lane; expected for example uwf/t"),
        (["uwf/tiles"], Wanted(partition="b00009"), "found no partition b00009; expected for example b0000"),
        (["uwf/tiles"], Wanted(partition_range="b00001"), None),
        (["uwf/tiles"], Wanted(partition_range="b00003...b00001"), "b00003 comes after b00001"),
        (["uwf/tiles"], Wanted(), "has partitions b00001 to b00005: give --partition"),
        (["uwf"], Wanted(partition="b9"), "b9: no asset of uwf has this partition"),
    ],
)
def test_what_the_deployment_does_not_have_is_refused_with_what_it_has(
    names: list[str], wanted: Wanted, message: str | None
) -> None:
    if message is None:
        assert _plan(names, wanted)[0][0].tags == {"dagster/partition": "b00001"}
        return
    with pytest.raises(SubmissionError, match=re.escape(message)):
        _plan(names, wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(partition_range="b00001...b00002...b00003"), "expected a range as first...last"),
        (Wanted(partition_range="...b00003"), "expected a range as first...last"),
        (Wanted(partition_range=""), "expected a range as first...last"),
        (Wanted(partition="b00001", missing=True), "give one of"),
        (Wanted(partition="b00001", partition_range="b00001...b00002"), "give one of"),
    ],
)
def test_wishes_that_no_deployment_could_fulfil_are_refused_before_it_is_asked(wanted: Wanted, message: str) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(SubmissionError, match=re.escape(message)):
        submit_and_follow("http://127.0.0.1:9", ["uwf"], wanted, tags={}, longest=16, console=console)


def test_an_asset_without_registered_partitions_is_refused_with_how_to_register_some() -> None:
    empty = [replace(LANE[0], partitions=())]
    with pytest.raises(SubmissionError, match="uveitis-assets register uwf"):
        plan_stages(empty, set(), Wanted(everything=True), 16, lambda _: set())
