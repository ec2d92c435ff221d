"""Dagster's selection strings and Hydra's overrides are parsed in one process."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
def dagster_selections():
    import dagster as dg
    from uveitis_assets.definitions import defs
    graph = defs().resolve_asset_graph()
    return [
        sorted(key.to_user_string() for key in dg.AssetSelection.from_string(text).resolve(graph))
        for text in ("uwf700/roi_masks", 'group:fgadr and key:"*/*o*"', '1+key:"uwf700/tiles"', "kind:polars")
    ]
def hydra_overrides():
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf
    override = OverridesParser.create().parse_override("++model.size=[1,{a: 2}]")
    return [override.value(), OmegaConf.create({"a": 3, "b": "${a}"}).b]
order = [dagster_selections, hydra_overrides]
found = {function.__name__: function() for function in (order if sys.argv[1] == "dagster first" else order[::-1])}
print(json.dumps(found))
"""


@pytest.mark.parametrize("order", ["dagster first", "hydra first"])
def test_selections_and_overrides_are_parsed_whichever_comes_first(order: str) -> None:
    finished = subprocess.run([sys.executable, "-c", PROGRAM, order], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == {
        "dagster_selections": [
            ["uwf700/roi_masks"],
            ["fgadr/coco_labels", "fgadr/normalized_crops", "fgadr/roi_masks"],
            ["uwf700/normalized_crops", "uwf700/tiles"],
            ["deepdrid/manifest", "eyepacs/manifest", "fgadr/manifest", "uwf700/manifest"],
        ],
        "hydra_overrides": [[1, {"a": 2}], 3],
    }
