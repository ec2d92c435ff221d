"""The reference page of the launcher says what the launcher takes."""

import json
import re
from pathlib import Path

import dagster as dg
import pytest
import yaml

from uveitis_assets.launcher import GpuDockerRunLauncher
from uveitis_assets.launcher.overrides import OVERRIDABLE, parse_overrides
from uveitis_assets_tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reference" / "run-launcher.md").read_text()


def _example(language: str) -> str:
    (example,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(example)


def _section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_field_has_a_row_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", _section("Fields of `config`"), re.MULTILINE))
    fields = GpuDockerRunLauncher.config_type()
    assert set(rows) == set(fields)
    for name, field in fields.items():
        if field.default_provided:
            assert rows[name] == f"`{field.default_value}`"


def test_the_options_that_a_run_may_set_are_all_listed() -> None:
    table = _section("Tags of a run").partition("| option | value |")[2].partition("```")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {option for cell in cells for option in re.findall(r"`(\w+)`", cell)} == OVERRIDABLE


def test_the_example_of_a_run_is_accepted() -> None:
    example = _example("json")
    assert parse_overrides({"docker/container_kwargs": example}) == json.loads(example)


def test_the_example_of_an_instance_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS_VOLUME", "models:/models")
    example = _example("yaml")
    (tmp_path / "dagster.yaml").write_text(example)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, GpuDockerRunLauncher)
        assert launcher.settings.read_only_volumes == tuple(
            yaml.safe_load(example)["run_launcher"]["config"]["read_only_volumes"]
        )
        assert instance.run_retries_max_retries == 2
