"""What a user writes into defs.yaml: a fifth dataset works, and mistakes are named with file, line and expectation."""

import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import dagster as dg
import pytest
from pydantic import ValidationError

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets_tests.components.running_platform import Platform, read_coco
from uveitis_assets_tests.lane_project import fundus_lanes, load_project, write_project

CLINIC = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: clinic
  layout: image_folder
  folder: clinic
  batch_size: 4
  image_folder:
    csv: images.csv
    patient_column: patient
    eye_column: side
    grade_column: grade
  tiling:
    global_size: 128
    tile_size: 96
"""


def lines_of(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


MISTAKES = {
    "unknown field": ([("  folder:", "  foldr: x\n  folder:")], 5, "foldr", "Extra inputs are not permitted"),
    "unknown nested field": (
        [("    tile_size: 96", "    tile_size: 96\n    tile_overlap: 0.5")],
        15,
        "tile_overlap",
        "Extra inputs are not permitted",
    ),
    "wrong type": ([("batch_size: 4", "batch_size: four")], 6, "batch_size", "should be a valid integer"),
    "yes for a number": ([("batch_size: 4", "batch_size: yes")], 6, "batch_size", "should be a valid integer"),
    "a number in quotes": ([("batch_size: 4", "batch_size: '4'")], 6, "batch_size", "should be a valid integer"),
    "a broken number for a whole one": (
        [("batch_size: 4", "batch_size: 4.0")],
        6,
        "batch_size",
        "should be a valid integer",
    ),
    "a number for yes or no": (
        [("    csv: images.csv", "    csv: images.csv\n    identify_by_content: 1")],
        9,
        "identify_by_content",
        "should be a valid boolean",
    ),
    "yes for a share": (
        [("    tile_size: 96", "    tile_size: 96\n    overlap: no")],
        15,
        "overlap",
        "should be a valid number",
    ),
    "yes for the label of a point": (
        [("  tiling:", "  roi:\n    sam2:\n      points_norm: [[0.5, 0.5, yes]]\n  tiling:")],
        14,
        "points_norm",
        "should be a valid integer",
    ),
    "a template": ([("batch_size: 4", "batch_size: '{{ env.BATCH_SIZE }}'")], 6, "batch_size", "valid integer"),
    "a list for a number": ([("batch_size: 4", "batch_size: [4]")], 6, "batch_size", "should be a valid integer"),
    "an owner without address": (
        [("  batch_size: 4", "  owners: [team:imaging, bob]")],
        6,
        "owners",
        "expected an e-mail address or team:<name>, such as team:imaging, found 'bob'",
    ),
    "out of range": ([("batch_size: 4", "batch_size: 0")], 6, "batch_size", "greater than or equal to 1"),
    "nested out of range": ([("tile_size: 96", "tile_size: 7")], 14, "tile_size", "greater than or equal to 32"),
    "unknown choice": (
        [("layout: image_folder", "layout: folder_of_images")],
        4,
        "layout",
        "'uwf700', 'fgadr', 'deepdrid', 'eyepacs' or 'image_folder'",
    ),
    "missing field": ([("  folder: clinic\n", "")], 2, "folder", "Field required"),
    "bad name": ([("name: clinic", "name: My Clinic")], 3, "name", "should match pattern"),
    "options of another layout": (
        [("layout: image_folder", "layout: eyepacs")],
        2,
        "attributes",
        "image_folder options need `layout: image_folder`, found layout eyepacs",
    ),
    "a pattern of patients that is no regular expression": (
        [
            ("  tiling:", "  patients:\n    pattern: '(?P<patient>\\d+_left'\n  tiling:"),
            ("    patient_column: patient\n", ""),
        ],
        12,
        "patients",
        "expected a regular expression such as",
    ),
    "a pattern without patient": (
        [("  tiling:", "  patients:\n    pattern: '(\\d+)_left'\n  tiling:"), ("    patient_column: patient\n", "")],
        12,
        "patients",
        "expected a group (?P<patient>...)",
    ),
    "patients in two places": (
        [("  tiling:", "  patients: {csv: people.csv}\n  tiling:")],
        2,
        "attributes",
        "expected one place where patients stand, found image_folder.patient_column too",
    ),
    "unknown lesion class": (
        [("  tiling:", "  labels:\n    format: obb\n    classes: [haemorage]\n  tiling:")],
        12,
        "labels",
        "haemorage",
    ),
    "columns of no CSV": (
        [("    csv: images.csv\n", "")],
        7,
        "image_folder",
        "patient_column and eye_column and grade_column name columns of a CSV file: expected `csv`, found none",
    ),
    "path column of no CSV": (
        [(CLINIC[CLINIC.index("    csv") : CLINIC.index("  tiling")], "    path_column: p\n")],
        7,
        "image_folder",
        "path_column name columns of a CSV file: expected `csv`, found none",
    ),
    "method of another lane's dataset": (
        [("  tiling:", "  roi:\n    method_by_dataset: {uwf: uwf}\n  tiling:")],
        2,
        "roi.method_by_dataset",
        "expected dataset tags of the lane (clinic), found uwf",
    ),
    "method of a DeepDRiD lane without its tags": (
        [
            (CLINIC[CLINIC.index("  layout") : CLINIC.index("  tiling")], "  layout: deepdrid\n  folder: clinic\n"),
            ("  tiling:", "  roi:\n    method_by_dataset: {clinic: uwf}\n  tiling:"),
        ],
        2,
        "roi.method_by_dataset",
        "expected dataset tags of the lane (clinic_regular, clinic_uwf), found clinic",
    ),
    "pinned splits outside": (
        [("  tiling:", "  splits:\n    pinned: ../../splits.json\n  tiling:")],
        13,
        "pinned",
        "expected a file below $UVEITIS_DATA without `..`, found '../../splits.json'",
    ),
    "pinned splits with another placeholder": (
        [("  tiling:", "  splits:\n    pinned: pinned/{split}_{fold}.json\n  tiling:")],
        13,
        "pinned",
        "expected no placeholder but {fold}, found {split} in 'pinned/{split}_{fold}.json'",
    ),
    "pinned splits with half a placeholder": (
        [("  tiling:", "  splits:\n    pinned: pinned/{fold.json\n  tiling:")],
        13,
        "pinned",
        "expected no placeholder but {fold}, found {fold.json in",
    ),
    "a CSV beside the dataset": (
        [("csv: images.csv", "csv: ../images.csv")],
        8,
        "csv",
        "expected a CSV file below the dataset folder without `..`, found '../images.csv'",
    ),
    "a CSV from the root": (
        [("csv: images.csv", "csv: /srv/images.csv")],
        8,
        "csv",
        "expected a CSV file below the dataset folder without `..`, found '/srv/images.csv'",
    ),
    "masks that are too large and too small": (
        [("  tiling:", "  roi:\n    min_area_ratio: 0.6\n    max_area_ratio: 0.5\n  tiling:")],
        12,
        "roi",
        "min_area_ratio: expected at most max_area_ratio, 0.5, found 0.6",
    ),
    "the method as its own fallback": (
        [("  tiling:", "  roi:\n    method: uwf\n    fallback: [threshold, uwf]\n  tiling:")],
        12,
        "roi",
        "fallback: expected methods other than `method`, found uwf; remove it",
    ),
    "a fallback twice": (
        [("  tiling:", "  roi:\n    method: uwf\n    fallback: [threshold, threshold]\n  tiling:")],
        12,
        "roi",
        "fallback: expected each method once, found threshold again; remove it",
    ),
    "a box class that is no number": (
        [
            (CLINIC[CLINIC.index("  layout") : CLINIC.index("  tiling")], "  layout: uwf700\n  folder: clinic\n"),
            ("  tiling:", "  labels:\n    format: obb\n    label_classes: {bleeding: hemorragie}\n  tiling:"),
        ],
        6,
        "labels",
        "label_classes: expected the class numbers of the box files, such as '1', found bleeding",
    ),
    "a box class without quotes": (
        [
            (CLINIC[CLINIC.index("  layout") : CLINIC.index("  tiling")], "  layout: uwf700\n  folder: clinic\n"),
            ("  tiling:", "  labels:\n    format: obb\n    label_classes: {1: hemorragie}\n  tiling:"),
        ],
        8,
        "label_classes",
        "should be a valid string",
    ),
    "pinned splits from the root": (
        [("  tiling:", "  splits:\n    pinned: /etc/splits.json\n  tiling:")],
        13,
        "pinned",
        "expected a file below $UVEITIS_DATA",
    ),
    "bad cron": (
        [("  tiling:", "  automation:\n    fill_cron: every night\n  tiling:")],
        13,
        "fill_cron",
        "expected cron syntax (minute, hour, day of month, month, day of week), such as `0 2 * * *`",
    ),
    "cron with seconds": (
        [("  tiling:", '  automation:\n    fill_cron: "0 2 * * * 30"\n  tiling:')],
        13,
        "fill_cron",
        "found '0 2 * * * 30'",
    ),
    "cron beyond the clock": (
        [("  tiling:", '  automation:\n    fill_cron: "0 25 * * *"\n  tiling:')],
        13,
        "fill_cron",
        "found '0 25 * * *'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_defs_yaml_is_named_with_file_line_and_expectation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    changes, line, field, expectation = MISTAKES[mistake]
    name = f"mistaken_{re.sub('[^a-z]', '_', mistake)}"
    with pytest.raises(Exception) as caught:
        load_project(tmp_path, name, {"clinic": lines_of(CLINIC, *changes)}, monkeypatch)
    # Dagster prints the error with its causes.
    message = "".join(traceback.format_exception(caught.value))
    assert f"{name}/defs/clinic/defs.yaml:{line}" in message
    assert field in message
    assert expectation in message


@pytest.mark.parametrize(
    "owner",
    ["bob", "team:imaging", "team:", "team", "team:a b", "bob@clinic.fr", "bob@clinic", "@clinic.fr", "bob@clinic.fr ",
     "b.o+b@eye.clinic.fr", "Bob <bob@clinic.fr>", ".bob@clinic.fr", "_b@c.fr", "", "team:imaging\n", "bob@-.fr"],
)  # fmt: skip
def test_owners_are_those_that_dagster_takes(owner: str) -> None:
    try:
        dg.AssetSpec("manifest", owners=[owner])
    except dg.DagsterInvalidDefinitionError:
        with pytest.raises(ValidationError, match="expected an e-mail address or team:<name>"):
            LaneConfiguration(name="clinic", layout="image_folder", folder="clinic", owners=(owner,))
    else:
        LaneConfiguration(name="clinic", layout="image_folder", folder="clinic", owners=(owner,))


SMALL_LANE = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: {name}
  layout: {layout}
  folder: {name}
"""


def lane_text(name: str, layout: str = "image_folder", more: str = "") -> str:
    return SMALL_LANE.format(name=name, layout=layout) + more


CONFLICTS = {
    "folds of one split name": (
        {
            "one": lane_text("one"),
            "two": lane_text("two", more="  splits:\n    seed: 1\n    folds: 3\n"),
        },
        ["one/defs.yaml:2", "two/defs.yaml:8"],
        "expected 5 as in `splits.folds` of lane one",
    ),
    "a lane called like a dataset tag": (
        {"deep": lane_text("deepdrid", "deepdrid"), "wide": lane_text("deepdrid_uwf")},
        ["deep/defs.yaml:3", "wide/defs.yaml:3"],
        "begin with `deepdrid_uwf::` too",
    ),
    "another lane called like a dataset tag": (
        {"deep": lane_text("deepdrid", "deepdrid"), "regular": lane_text("deepdrid_regular")},
        ["deep/defs.yaml:3", "regular/defs.yaml:3"],
        "begin with `deepdrid_regular::` too",
    ),
    "one name twice": (
        {"one": lane_text("same"), "two": lane_text("same")},
        ["one/defs.yaml:3", "two/defs.yaml:3"],
        "expected a name of its own, found that of fundus lane same at",
    ),
    "a pinned file that is overwritten": (
        {"one": lane_text("one", more="  splits:\n    name: old\n    pinned: splits/stage0_{fold}.json\n"),
         "two": lane_text("two")},
        ["one/defs.yaml:8"],
        "found splits/stage0_{fold}.json, which the manifest of lane two overwrites",
    ),
}  # fmt: skip


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_lanes_that_would_write_the_same_files_are_refused_with_both_files_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conflict: str
) -> None:
    lanes, places, expectation = CONFLICTS[conflict]
    with pytest.raises(Exception) as caught:
        load_project(tmp_path, f"conflicting_{re.sub('[^a-z]', '_', conflict)}", lanes, monkeypatch)
    message = "".join(traceback.format_exception(caught.value))
    assert "LaneConflictError" in message
    assert expectation in message
    for place in places:
        assert f"defs/{place}" in message


def test_lanes_with_other_split_names_may_have_other_folds_and_pin_files_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = {
        "one": lane_text("one", more="  splits: {pinned: pinned/stage0_0.json}\n"),
        "two": lane_text("two", more="  splits: {name: other, folds: 3, pinned: splits/older_0.json}\n"),
        "three": lane_text("deepdrid", "deepdrid"),
        "four": lane_text("deepdrid_wide"),
    }
    assert load_project(tmp_path, "peaceful", lanes, monkeypatch).resolve_asset_graph().get_all_asset_keys()


def test_the_command_line_shows_the_mistake_to_the_user(tmp_path: Path) -> None:
    write_project(tmp_path, "mistaken_cli", {"clinic": lines_of(CLINIC, ("batch_size: 4", "batch_size: 0"))})
    finished = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "mistaken_cli.definitions"],
        cwd=tmp_path,
        env=os.environ | {"DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    shown = finished.stdout + finished.stderr
    assert "mistaken_cli/defs/clinic/defs.yaml:6" in shown
    assert "greater than or equal to 1" in shown


def test_a_fifth_dataset_is_one_defs_yaml(
    tmp_path: Path, platform: Platform, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing = platform.store.raw / "clinic" / "2024 spring"
    landing.mkdir(parents=True)
    rows = ["image,patient,side,grade"]
    for number, source in enumerate(sorted((sample / "fgadr" / "Original_Images").iterdir())):
        shutil.copy(source, landing / f"visit, {number}.png")
        rows.append(
            f'"2024 spring/visit, {number}.png",P{number // 2},{"left" if number % 2 else "right"},{number % 3}'
        )
    (landing.parent / "images.csv").write_text("\n".join(rows) + "\n")
    definitions = load_project(tmp_path, "five_datasets", {"clinic": CLINIC}, monkeypatch)
    clinic = Platform(definitions, fundus_lanes(tmp_path / "five_datasets"), platform.store)
    assert clinic.register("clinic").new_batches == ("b00001", "b00002")
    assert clinic.run("clinic", "b00001", "b00002").success
    manifest = [json.loads(line) for line in clinic.store.manifest_export("clinic", "jsonl").read_text().splitlines()]
    assert [row["eye"] for row in manifest] == ["R", "L", "R", "L", "R"]
    assert [row["notes"] for row in manifest] == ["grade=0", "grade=1", "grade=2", "grade=0", "grade=1"]
    assert len({row["patient_id"] for row in manifest}) == 3
    assert not any("P0" in json.dumps(row) for row in manifest)
    assert clinic.metadata("clinic/tiles", "b00001")["n_done"] == 4
    assert clinic.metadata("clinic/tiles", "b00002")["n_done"] == 1
    graded_only = definitions.resolve_asset_graph().get_all_asset_keys()
    assert sorted(key.path[-1] for key in graded_only) == ["manifest", "normalized_crops", "roi_masks", "tiles"]


def test_other_tiling_and_native_frames_come_from_the_yaml(
    tmp_path: Path, platform: Platform, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: small
  layout: fgadr
  folder: fgadr
  tiling: {global_size: 64, tile_size: 96, overlap: 0.5, frame: native}
  persist: [tiles]
  splits: {name: other, folds: 2, test_ratio: 0.0}
  labels: {format: mask, classes: [hemorragie]}
"""
    shutil.copytree(sample / "fgadr", platform.store.raw / "fgadr")
    definitions = load_project(tmp_path, "other_tiling", {"small": text}, monkeypatch)
    small = Platform(definitions, fundus_lanes(tmp_path / "other_tiling"), platform.store)
    small.register("small")
    assert small.run("small").success
    labels = small.run_labels("small", "fold0|train", "fold1|test")
    assert labels.success
    names = {folder.name for folder in (small.store.root / "preproc").iterdir()}
    assert names == {"roi_masks", "crop_meta", "norm_meta", "tiles", "tiles_meta", "verify"}
    coco = read_coco(small.store, "small", "train", fold=1, tiles=True)
    assert [category["name"] for category in coco["categories"]] == ["hemorragie"]
    assert {(image["width"], image["height"]) for image in coco["images"]} == {(96, 96)}
    checks = labels.get_asset_check_evaluations()
    assert checks
    for check in checks:
        assert check.metadata["n_errors"].value == 0, check.metadata["findings"].value
    assert small.store.splits_file("other", 1).exists()
    assert not small.store.splits_file("other", 2).exists()
