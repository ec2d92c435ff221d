"""Mistakes in a defs.yaml that keep it from being any component: named with the file, where Dagster names none."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import uveitis_assets
from uveitis_assets.components.defs_files import check_defs_files

FUNDUS_DATASET = "uveitis_assets.components.fundus_dataset.FundusDataset"


def lane_file(folder: Path, text: str) -> Path:
    file = folder / "clinic/defs.yaml"
    file.parent.mkdir()
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    "found",
    [
        FUNDUS_DATASET + "s",
        "uveitis_assets.components.fundus_datasets.FundusDataset",
        "uveitis_asset.components.fundus_dataset.FundusDataset",
        "FundusDataset",
    ],
)
def test_a_type_that_does_not_exist_is_named_with_file_and_line(tmp_path: Path, found: str) -> None:
    file = lane_file(tmp_path, f"# our clinic\ntype: {found}\nattributes:\n  name: clinic\n")
    with pytest.raises(ValueError, match="type: expected a component, such as") as caught:
        check_defs_files(tmp_path)
    assert f"{file}:2: " in str(caught.value)
    assert repr(found) in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n---\n"])
def test_an_empty_file_is_named(tmp_path: Path, text: str) -> None:
    file = lane_file(tmp_path, text)
    with pytest.raises(ValueError, match="found an empty file") as caught:
        check_defs_files(tmp_path)
    assert str(file) in str(caught.value)


def test_the_second_of_two_components_in_a_file_is_looked_at_too(tmp_path: Path) -> None:
    lane_file(tmp_path, f"type: {FUNDUS_DATASET}\n---\ntype: {FUNDUS_DATASET}s\n")
    with pytest.raises(ValueError, match=r"defs\.yaml:3: type"):
        check_defs_files(tmp_path)


def test_what_is_no_yaml_is_named_with_file_and_line(tmp_path: Path) -> None:
    file = lane_file(tmp_path, f"type: {FUNDUS_DATASET}\nattributes: [name\n")
    with pytest.raises(yaml.YAMLError) as caught:
        check_defs_files(tmp_path)
    assert f'"{file}", line 2' in str(caught.value)


def test_a_component_whose_own_imports_fail_is_left_to_dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "component_in_need.py").write_text("import a_library_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    lane_file(tmp_path, "type: component_in_need.Lane\n")
    check_defs_files(tmp_path)


def test_the_shipped_lanes_pass_and_the_definitions_look_at_them() -> None:
    check_defs_files(Path(uveitis_assets.__file__).parent / "defs")
    looked_at = (
        "import uveitis_assets.definitions as definitions\n"
        "def refuse(folder): raise ValueError(f'looked at {folder}')\n"
        "definitions.check_defs_files = refuse\n"
        "definitions.defs()\n"
    )
    result = subprocess.run([sys.executable, "-c", looked_at], capture_output=True, text=True, check=False)
    assert "looked at" in result.stderr
    assert "uveitis_assets/defs" in result.stderr
