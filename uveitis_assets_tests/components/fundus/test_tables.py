"""Lanes with tables as people save them, and with patients in tables or file names: from YAML to manifest and check."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets.components.fundus import lanes as lanes_module
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.landing.pseudonyms import patient_key, pseudonym
from uveitis_assets.landing.registration import LostPatientsError
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.components.running_platform import Platform, use
from uveitis_assets_tests.landing.landing_samples import land
from uveitis_assets_tests.lane_project import fundus_lanes, load_project

WARN = dg.AssetCheckSeverity.WARN
LANE = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: {name}
  layout: {layout}
  folder: {name}
"""
PAIRS = LANE.format(name="pairs", layout="uwf700")
PATTERN = "  patients:\n    pattern: '(?P<patient>\\d+)_(left|right)'\n"
TABLE = "  patients:\n    csv: people.csv\n    path_column: file\n    patient_column: person\n"


def project(store: ArtefactStore, name: str, lanes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The lanes of a project of their own, on the store."""
    use(store, monkeypatch)
    folder = store.root.parent / "project"
    definitions = load_project(folder, name, lanes, monkeypatch)
    return Platform(definitions, fundus_lanes(folder / name), store)


def manifest(platform: Platform, lane: str) -> dict[str, dict[str, Any]]:
    """Register, materialize the manifest of the one batch, and read it by image id."""
    platform.register(lane)
    assert platform.run(lane, only=["manifest"]).success
    return {row["image_id"]: row for row in read_manifest(platform.store, lane).iter_rows(named=True)}


def integrity(platform: Platform, lane: str) -> dg.AssetCheckEvaluation:
    return platform.check(f"{lane}/manifest", "manifest_integrity", "b00001")


def findings(evaluation: dg.AssetCheckEvaluation) -> str:
    return str(evaluation.metadata["findings"].value)


@pytest.fixture
def case_lanes(cases: Path, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The lanes of all cases of tables, landed and not registered."""
    lanes = {"eyepacs": LANE.format(name="eyepacs", layout="eyepacs")}
    for case in sorted(cases.glob("csv_*")):
        shutil.copytree(case, store.raw, ignore=shutil.ignore_patterns("defs.yaml"), dirs_exist_ok=True)
        if (case / "defs.yaml").exists():
            lanes[case.name] = (case / "defs.yaml").read_text()
    return project(store, "case_tables", lanes, monkeypatch)


def test_the_cases_of_tables_are_read_or_refused_with_what_to_do(case_lanes: Platform) -> None:
    key = patient_key(case_lanes.store)
    expected = {
        "eyepacs": {"10_left": ("10", 0), "10_right": ("10", 0), "11_left": ("11", 1), "11_right": ("11", 1)},
        "sepcsv": {"a0": ("P0", 0), "a1": ("P0", 1), "a2": ("P1", 2)},
        "trailcsv": {"b0": ("P0", 0), "b1": ("P0", 1), "b2": ("P1", 2)},
    }
    for lane, images in expected.items():
        assert {
            image_id: (row["patient_id"], row["notes"], row["label_format"])
            for image_id, row in manifest(case_lanes, lane).items()
        } == {
            f"{lane}::{stem}": (pseudonym(key, lane, patient), f"grade={grade}", "grade")
            for stem, (patient, grade) in images.items()
        }
        assert integrity(case_lanes, lane).passed
    with pytest.raises(LostPatientsError, match=r"visits\.xlsx: expected a CSV file, found a workbook .* as CSV"):
        case_lanes.register("xlsxcsv")
    assert not case_lanes.store.ledger_file("xlsxcsv").exists()


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("", "left/right"), (PATTERN, None), (TABLE, None)],
    ids=["no rule", "pattern", "table"],
)
def test_two_eyes_of_a_person_without_a_rule_are_a_warning(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch, rule: str, kind: str | None
) -> None:
    for name in ("4711_left", "4711_right", "4712_left", "4713_right"):
        land(store, f"Images/Uveitis/{name}.jpg", folder="pairs")
    land(store, "people.csv", b"file;person;\n4711_left;A;\n4711_right;A;\n4712_left;B;\n4713_right;C;\n", "pairs")
    name = f"pairs_{len(rule)}"
    platform = project(store, name, {"pairs": PAIRS + rule}, monkeypatch)
    rows = manifest(platform, "pairs")
    people = {row["patient_id"] for image_id, row in rows.items() if "4711" in image_id}
    evaluation = integrity(platform, "pairs")
    assert evaluation.passed == (kind is None), findings(evaluation)
    assert len(people) == (2 if kind else 1)
    assert len({row["patient_id"] for row in rows.values()}) == (4 if kind else 3)
    if kind:
        assert evaluation.severity == WARN
        assert "2 file names differ in left/right only and look like images of 1 person," in findings(evaluation)
        assert "patients: {pattern: '(?i)(?P<patient>.+?)" in findings(evaluation)
        assert "4711" not in findings(evaluation)


def test_a_name_that_the_pattern_does_not_match_is_shown(store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("4711_left", "Uveitis-001"):
        land(store, f"Images/Uveitis/{name}.jpg", folder="pairs")
    platform = project(store, "unmatched_names", {"pairs": PAIRS + PATTERN}, monkeypatch)
    rows = manifest(platform, "pairs")
    key = patient_key(store)
    assert rows["pairs::Uveitis-001"]["patient_id"] == pseudonym(key, "pairs", "Uveitis-001")
    evaluation = integrity(platform, "pairs")
    assert (evaluation.passed, evaluation.severity) == (False, WARN)
    assert "Images/Uveitis/Uveitis-001.jpg: no_patient: 1 images" in findings(evaluation)


def test_every_tick_fails_until_the_table_of_patients_is_there(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(store, "Images/Uveitis/a.jpg", folder="pairs")
    platform = project(store, "late_table", {"pairs": PAIRS + TABLE}, monkeypatch)
    waiting = platform.tick("pairs_landing")
    assert isinstance(waiting, dg.SensorResult)
    for _ in range(2):
        with pytest.raises(LostPatientsError, match=r"people\.csv: no such file"):
            platform.tick("pairs_landing", waiting.cursor)
    assert not store.ledger_file("pairs").exists()
    land(store, "people.csv", b"file,person\na.jpg,A\n", "pairs")
    result = platform.tick("pairs_landing", waiting.cursor)
    assert isinstance(result, dg.SensorResult)
    result = platform.tick("pairs_landing", result.cursor)
    assert isinstance(result, dg.SensorResult)
    assert len(result.run_requests or ()) == 1


def test_a_sensor_requests_the_manifests_again_after_the_rule_changed(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for eye in ("left", "right"):
        land(store, f"Images/Uveitis/4711_{eye}.jpg", folder="pairs")
    platform = project(store, "before_the_rule", {"pairs": PAIRS}, monkeypatch)
    assert len({row["patient_id"] for row in manifest(platform, "pairs").values()}) == 2
    cursor = None
    for _ in range(2):
        result = platform.tick("pairs_landing", cursor)
        assert isinstance(result, dg.SensorResult)
        cursor = result.cursor
    shutil.rmtree(store.root.parent / "project")
    changed = project(store, "after_the_rule", {"pairs": PAIRS + PATTERN}, monkeypatch)
    changed.instance = platform.instance
    requests = []
    for _ in range(2):
        result = changed.tick("pairs_landing", cursor)
        assert isinstance(result, dg.SensorResult)
        cursor, requests = result.cursor, [*requests, *(result.run_requests or ())]
    assert requests
    assert len({row["patient_id"] for row in manifest(changed, "pairs").values()}) == 1


def test_register_refuses_one_lane_and_registers_the_others(
    store: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(store, "Images/Uveitis/a.jpg", folder="pairs")
    land(store, "people.csv", b"file,person\na.jpg\n", "pairs")
    land(store, "b.jpg", folder="sound")
    lanes = {"pairs": PAIRS + TABLE, "sound": LANE.format(name="sound", layout="image_folder")}
    platform = project(store, "refused_lane", lanes, monkeypatch)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(lanes_module, "load_lanes", lambda: platform.lanes)
    done = CliRunner().invoke(app, ["register"])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert "error: pairs: the patient ids of its images stand in a table that cannot be read" in done.output
    assert "people.csv:2: expected 2 cells, found 1" in done.output
    assert "sound: 1 images, 1 new" in done.output
    assert not store.ledger_file("pairs").exists()
    assert store.ledger_file("sound").exists()
