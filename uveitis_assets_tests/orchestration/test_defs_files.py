"""Mistakes in a defs.yaml that keep it from being any component: named with the file, where Dagster names none."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

import uveitis_assets
from uveitis_assets.cli import app
from uveitis_assets.components.fundus import lanes
from uveitis_assets.orchestration.defs_files import PACKAGE, DefsFileError, check_defs_files
from uveitis_assets_tests.lane_project import write_project

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
    lane_file(tmp_path, f"{LANE}---\ntype: {FUNDUS_DATASET}s\n")
    with pytest.raises(ValueError, match=r"defs\.yaml:5: type"):
        check_defs_files(tmp_path)


LANE = f"type: {FUNDUS_DATASET}\nattributes:\n  name: clinic\n"
MISTAKES = {
    "a flow list that is not closed": (f"type: {FUNDUS_DATASET}\nattributes: [name\n", 3, "expected YAML: "),
    "a tab": (LANE + "\troi: {}\n", 4, "expected YAML: found character '\\t'"),
    "a flow mapping that is not closed": (LANE + "  roi: {method: uwf\n  tiling: {}\n", 5, "expected YAML: "),
    "a tag": (LANE + "  batch_size: !env SIZE\n", 4, "expected a plain value, found the tag !env"),
    "a template without quotes": (LANE + "  batch_size: {{ env.SIZE }}\n", 4, "put text with braces in quotes"),
    "a key twice": (LANE + "  layout: eyepacs\n  name: other\n", 5, "name: expected once, found in line 3 already"),
    "a nested key twice": (LANE + "  roi: {method: uwf, method: threshold}\n", 4, "method: expected once"),
    "the attributes twice": (
        LANE + "attributes:\n  name: b\n",
        4,
        "attributes: expected once, found in line 2 already",
    ),
    "a list": (f"- type: {FUNDUS_DATASET}\n", 1, "expected `type` and `attributes` of a component, found a list"),
    "a sentence": ("our clinic\n", 1, "found a single value"),
    "no attributes": (f"# ours\ntype: {FUNDUS_DATASET}\n", 2, "attributes` of a FundusDataset, found only `type`"),
    "attributes misspelt": (LANE.replace("attributes", "atributes"), 1, "found only `type`, `atributes`"),
    "empty attributes": (f"type: {FUNDUS_DATASET}\nattributes:\n", 2, "the fields of a FundusDataset, found none"),
    "attributes in a list": (LANE.replace("  name", "  - name"), 2, "the fields of a FundusDataset, found a list"),
    "attributes of colours": (
        "type: uveitis_assets.components.reference_color.ReferenceColor\nattributes: {}\n",
        2,
        "the fields of a ReferenceColor, found none",
    ),
    "a type that is no component": (
        "type: uveitis_assets.components.fundus_dataset.lane_assets\n",
        1,
        "'uveitis_assets.components.fundus_dataset.lane_assets', which is none",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_dagster_does_not_name_is_named_with_file_and_line(tmp_path: Path, mistake: str) -> None:
    text, line, expectation = MISTAKES[mistake]
    file = lane_file(tmp_path, text)
    with pytest.raises(DefsFileError, match=re.escape(expectation)) as caught:
        check_defs_files(tmp_path)
    assert str(caught.value).startswith(f"{file}:{line}: ")


@pytest.mark.parametrize(
    ("content", "expectation"),
    [
        (LANE.encode() + "  description: Clinique privée\n".encode("latin-1"), "expected UTF-8, found the byte 0xe9"),
        (LANE.encode() + b"  description: a\x00b\n", "expected text, found the character U\\+0000"),
    ],
)
def test_bytes_that_are_no_text_are_named_with_file_and_line(tmp_path: Path, content: bytes, expectation: str) -> None:
    file = lane_file(tmp_path, "")
    file.write_bytes(content)
    with pytest.raises(DefsFileError, match=expectation) as caught:
        check_defs_files(tmp_path)
    assert str(caught.value).startswith(f"{file}:4: ")


def test_the_same_key_elsewhere_and_what_anchors_bring_along_are_no_repetition(tmp_path: Path) -> None:
    lane_file(
        tmp_path,
        LANE
        + "  roi: &roi {method: uwf}\n"
        + "  normalize: {method: clahe_luminance}\n"
        + "  again: {<<: *roi, method: threshold}\n"
        + f"---\n{LANE}",
    )
    check_defs_files(tmp_path)


@pytest.mark.parametrize("mistake", ["a tab", "a type that is no component", "no attributes", "a key twice"])
def test_registering_with_a_broken_file_fails_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    text, line, expectation = MISTAKES[mistake]
    package = write_project(tmp_path, "broken_project", {"clinic": text})
    monkeypatch.setattr(lanes, "load_lanes", partial(lanes.load_lanes, package))
    result = CliRunner().invoke(app, ["register"])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {package}/defs/clinic/defs.yaml:{line}: ")
    assert expectation in result.output
    assert "Traceback" not in result.output


def test_a_component_whose_own_imports_fail_is_left_to_dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "component_in_need.py").write_text("import a_library_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    lane_file(tmp_path, "type: component_in_need.Lane\n")
    check_defs_files(tmp_path)


def test_the_shipped_lanes_pass_and_the_definitions_look_at_them() -> None:
    assert Path(uveitis_assets.__file__).parent == PACKAGE
    check_defs_files(PACKAGE / "defs")
    assert sorted(lanes.load_lanes()) == ["deepdrid", "eyepacs", "fgadr", "uwf700"]
    looked_at = (
        "import uveitis_assets.definitions as definitions\n"
        "def refuse(folder): raise ValueError(f'looked at {folder}')\n"
        "definitions.check_defs_files = refuse\n"
        "definitions.defs()\n"
    )
    result = subprocess.run([sys.executable, "-c", looked_at], capture_output=True, text=True, check=False)
    assert "looked at" in result.stderr
    assert "uveitis_assets/defs" in result.stderr
