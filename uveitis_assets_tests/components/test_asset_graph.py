"""The whole asset graph beside a committed file, so that a changed lineage, partition or automation shows in review."""

import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import dagster as dg

SNAPSHOT = Path(__file__).with_name("asset_graph.json")
ACCEPT = "UVEITIS_ACCEPT_SNAPSHOT"


def described(definitions: dg.Definitions) -> dict[str, Any]:
    """Everything about the definitions that another part of the platform or a user relies on."""
    graph = definitions.resolve_asset_graph()
    pools = {
        key: pool
        for assets in definitions.assets or []
        if isinstance(assets, dg.AssetsDefinition)
        for key in assets.keys
        for pool in [assets.op.pool]
    }
    assets = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        assets[key.to_user_string()] = {
            "deps": {
                parent.to_user_string(): type(node.partition_mappings[parent]).__name__
                if parent in node.partition_mappings
                else None
                for parent in sorted(node.parent_keys)
            },
            "group": node.group_name,
            "partitions": partitions(node.partitions_def),
            "kinds": sorted(node.kinds),
            "owners": sorted(node.owners),
            "code_version": node.code_version,
            "pool": pools[key],
            "gpu": node.tags.get("uveitis/gpu"),
            "checks": sorted(check.name for check in node.check_keys),
            "backfill_policy": str(node.backfill_policy.policy_type.value) if node.backfill_policy else None,
        }
    return {
        "assets": assets,
        "jobs": {
            job.name: {
                "selection": sorted(
                    key.to_user_string()
                    for key in definitions.resolve_job_def(job.name).asset_layer.selected_asset_keys
                ),
                "tags": dict(sorted((job.tags or {}).items())),
            }
            for job in sorted(definitions.jobs or [], key=lambda job: job.name)
        },
        "sensors": {
            sensor.name: {
                "job": sensor.job_name if sensor.targets else None,
                "interval_s": sensor.minimum_interval_seconds,
                "starts": sensor.default_status.value,
            }
            for sensor in sorted(definitions.sensors or [], key=lambda sensor: sensor.name)
        },
        "schedules": {
            schedule.name: {
                "job": schedule.job_name,
                "cron": schedule.cron_schedule,
                "timezone": schedule.execution_timezone,
                "starts": schedule.default_status.value,
            }
            for schedule in sorted(definitions.schedules or [], key=lambda schedule: schedule.name)
        },
    }


def partitions(definition: dg.PartitionsDefinition[Any] | None) -> Any:
    if definition is None:
        return None
    if isinstance(definition, dg.DynamicPartitionsDefinition):
        return {"dynamic": definition.name}
    if isinstance(definition, dg.MultiPartitionsDefinition):
        return {one.name: one.partitions_def.get_partition_keys() for one in definition.partitions_defs}
    return definition.get_partition_keys()


def test_the_asset_graph_is_the_committed_one(definitions: dg.Definitions) -> None:
    found = described(definitions)
    if os.environ.get(ACCEPT) == "1":
        SNAPSHOT.write_text(json.dumps(found, indent=2) + "\n")
    expected = json.loads(SNAPSHOT.read_text())
    assert found == expected, f"the asset graph changed: look at the difference, then accept it with {ACCEPT}=1"


def test_every_asset_says_what_it_is_whose_it_is_and_of_which_kind(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.kinds, key
        assert node.code_version, key
        assert node.group_name != "default", key


def test_the_user_interface_has_an_icon_for_every_kind(definitions: dg.Definitions) -> None:
    pages = Path(str(files("dagster_webserver"))) / "webapp" / "build"
    (script,) = [text for path in pages.rglob("*.js") if "scikitlearn:{icon:" in (text := path.read_text())]
    known = set(re.findall(r'[{,]"?([\w.-]+)"?:\{icon:', script))
    assert len(known) > 100
    graph = definitions.resolve_asset_graph()
    kinds = {kind for key in graph.get_all_asset_keys() for kind in graph.get(key).kinds}
    assert kinds - known == set()


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    program = (
        "import sys, json, uveitis_assets.definitions as module; module.defs();"
        "heavy = ['torch', 'torchvision', 'cv2', 'sam2', 'polars', 'pyarrow', 'PIL', 'shapely', 'numpy', 'blake3'];"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == []
