"""The JSON tag by which one run sizes its container."""

import json

import pytest

from uveitis_assets.launcher.overrides import merge_deep, parse_overrides
from uveitis_assets.launcher.refusal import LaunchRefusedError


def _parse(value: object) -> dict[str, object]:
    return parse_overrides({"docker/container_kwargs": value if isinstance(value, str) else json.dumps(value)})


def test_a_run_without_the_tag_overrides_nothing():
    assert parse_overrides({"other": "tag"}) == {}


def test_sizes_counts_and_tables_are_taken_as_they_are():
    overrides = {
        "mem_limit": "16g",
        "shm_size": 1073741824,
        "memswap_limit": -1,
        "nano_cpus": 4_000_000_000,
        "cpuset_cpus": "0-3",
        "environment": {"OMP_NUM_THREADS": "4"},
        "labels": {"experiment": "a"},
    }
    assert _parse(overrides) == overrides


@pytest.mark.parametrize(
    "option", ["volumes", "mounts", "privileged", "cap_add", "user", "runtime", "device_requests", "entrypoint", "name"]
)
def test_options_that_reach_beyond_the_container_are_refused_with_the_allowed_ones_named(option: str):
    with pytest.raises(LaunchRefusedError, match=rf"sets '{option}', which a run may not; it may set .*mem_limit"):
        _parse({option: True})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{mem_limit: 1g}", "is not JSON"),
        ('["mem_limit"]', r"holds \[\"mem_limit\"\] \(list\), expected a JSON object"),
        ({"mem_limit": "much"}, "'much' for mem_limit, expected bytes or a size such as '16g'"),
        ({"mem_limit": 0}, "0 for mem_limit"),
        ({"shm_size": True}, "true .bool. for shm_size"),
        ({"nano_cpus": 1.5}, r"1.5 \(float\) for nano_cpus, expected a whole number"),
        ({"cpuset_cpus": 3}, r"3 \(int\) for cpuset_cpus, expected a text"),
        ({"environment": {"THREADS": 4}}, "for environment, expected an object of texts"),
        ({"environment": {"LD_PRELOAD": "/x.so"}}, "sets 'LD_PRELOAD' in environment"),
        ({"environment": {"OMP_NUM_THREADS": "four"}}, "sets OMP_NUM_THREADS .* does not match"),
        ({"environment": {"DAGSTER_HOME": "/x"}}, "sets 'DAGSTER_HOME' in environment"),
        ({"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}}, "sets 'NVIDIA_VISIBLE_DEVICES' in environment"),
        ({"labels": {"uveitis/deployment": "other"}}, "sets 'uveitis/deployment' in labels"),
        ({"labels": {"dagster/run_id": "x"}}, "sets 'dagster/run_id' in labels"),
        ({"labels": {"traefik.enable": "true"}}, "sets 'traefik.enable' in labels, expected a name of letters"),
        ({"labels": {"ofelia.job-exec.x.command": "sh"}}, "in labels"),
        ({"labels": {"": "x"}}, "in labels"),
        ({"labels": {"tier": "a\nb"}}, "sets tier in labels, expected a value"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(value: object, message: str):
    with pytest.raises(LaunchRefusedError, match=message):
        _parse(value)


def test_deep_merging_keeps_what_the_change_does_not_name_and_changes_neither_side():
    base = {"labels": {"team": "retina", "tier": "batch"}, "mem_limit": "8g"}
    changes = {"labels": {"tier": "night"}, "mem_limit": "16g"}
    assert merge_deep(base, changes) == {"labels": {"team": "retina", "tier": "night"}, "mem_limit": "16g"}
    assert base == {"labels": {"team": "retina", "tier": "batch"}, "mem_limit": "8g"}
    assert changes == {"labels": {"tier": "night"}, "mem_limit": "16g"}
