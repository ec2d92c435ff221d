"""What ``uveitis-assets register`` says about what landed, and about what keeps it from working; never a traceback."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets.components.fundus import lanes as lanes_module
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.lanes import load_lanes
from uveitis_assets.sample import write_uwf700
from uveitis_assets.storage.store import ArtefactStore


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("sample")
    write_uwf700(raw, 3, 5, 320, 252, workers=1)
    return raw


@pytest.fixture
def installation(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> ArtefactStore:
    """Three ultra-widefield images have landed, and nothing is registered."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UVEITIS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UVEITIS_RAW", str(sample))
    return ArtefactStore.from_environment()


def register(expected_code: int = 0) -> str:
    done = CliRunner().invoke(app, ["register", "uwf700"])
    assert done.exit_code == expected_code, done.output
    assert "Traceback" not in done.output
    return done.output


def test_register_says_what_is_new_changed_and_gone_and_adds_keys_once(
    installation: ArtefactStore, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(sample, raw)
    monkeypatch.setenv("UVEITIS_RAW", str(raw))
    first = register()
    assert "uwf700: 3 images, 3 new, 0 changed" in first
    assert "1 partition keys added" in first
    one, other = sorted((raw / "uwf-700" / "Images").glob("*/*.jpg"))[:2]
    assert f"uwf700::{one.stem}" in first
    assert "uwf700: 3 images, 0 new, 0 changed, 0 renamed, 0 relabelled, 0 gone, 0 returned; 0 partition" in register()
    one.write_bytes(other.read_bytes() + b"\0")
    other.unlink()
    one.with_name("broken.jpg").write_bytes(b"")
    changes = register()
    assert "1 new, 1 changed, 0 renamed, 0 relabelled, 1 gone" in changes
    assert f"changed: uwf700::{one.stem}" in changes
    assert f"gone: uwf700::{other.stem}" in changes
    assert "new batches: b00002" in changes
    assert "batches to materialize again: b00001" in changes
    assert "quarantined: uwf700::broken: empty_file" in changes
    with dg.DagsterInstance.get() as instance:
        assert instance.get_dynamic_partitions("uwf700_batches") == ["b00001", "b00002"]


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["register", "uwf7000"], {}, "found no lane uwf7000; expected one of deepdrid, eyepacs, fgadr, uwf700"),
        (["register", "uwf700"], {"DAGSTER_HOME": ""}, "DAGSTER_HOME is not set"),
        (["register", "uwf700"], {"DAGSTER_HOME": "home"}, "expected an absolute path"),
        (["register", "fgadr"], {}, "fgadr: expected the landing folder of fgadr, found none"),
        (["register", "uwf700"], {"UVEITIS_RAW": "LINKED"}, "expected a path below"),
        (["register", "uwf700"], {"UVEITIS_DATA": "FILE"}, "/locks: Not a directory; expected"),
    ],
    ids=[
        "unknown lane",
        "no DAGSTER_HOME",
        "relative DAGSTER_HOME",
        "no folder",
        "folder linked from outside",
        "no data folder",
    ],
)
def test_register_explains_what_keeps_it_from_working(
    installation: ArtefactStore,
    tmp_path: Path,
    sample: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "uwf-700").symlink_to(sample / "uwf-700")
    (tmp_path / "file").touch()
    places = {"LINKED": tmp_path / "linked", "FILE": tmp_path / "file"}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(places.get(value, value)))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert expected in done.output
    assert "Traceback" not in done.output


def test_register_names_a_damaged_ledger_and_what_to_do(installation: ArtefactStore) -> None:
    register()
    ledger = installation.ledger_file("uwf700")
    ledger.write_bytes(b"garbage")
    output = register(expected_code=2)
    assert f"error: {ledger}: expected the ledger of uwf700, found " in output
    assert "restore the file from the backup" in output
    assert ledger.read_bytes() == b"garbage"


def test_register_asks_for_a_lost_ledger_where_there_is_a_manifest(installation: ArtefactStore) -> None:
    register()
    part = installation.manifest_part("uwf700", "b00001")
    part.parent.mkdir(parents=True)
    part.touch()
    ledger = installation.ledger_file("uwf700")
    ledger.unlink()
    output = register(expected_code=2)
    assert f"error: {ledger}: expected the ledger that the manifest of uwf700 was made from, found none" in output
    assert not ledger.exists()


@pytest.mark.parametrize("content", [b"abc", b"\xff\x80" * 32], ids=["too short", "no hex digits"])
def test_register_names_a_damaged_key_of_the_pseudonyms(installation: ArtefactStore, content: bytes) -> None:
    key = installation.patient_key_file()
    key.parent.mkdir(parents=True)
    key.write_bytes(content)
    assert f"error: {key}: expected 64 hex digits, found " in register(expected_code=2)


def test_register_names_a_lost_key_of_the_pseudonyms(installation: ArtefactStore) -> None:
    register()
    part = installation.manifest_part("uwf700", "b00001")
    part.parent.mkdir(parents=True)
    part.touch()
    installation.patient_key_file().unlink()
    output = register(expected_code=2)
    assert f"error: {installation.patient_key_file()}: expected the key that the manifests' pseudonyms" in output


def test_register_names_damaged_reference_colours(installation: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_reference() -> dict[str, LaneConfiguration]:
        lane = lanes["uwf700"]
        method = lane.normalize.model_copy(update={"method": "reinhard_lab_ref"})
        return {"uwf700": lane.model_copy(update={"normalize": method})}

    lanes = load_lanes()
    monkeypatch.setattr(lanes_module, "load_lanes", with_reference)
    path = installation.reference_color_file()
    path.parent.mkdir(parents=True)
    for content in (b"{", b"{}", b"[]", b"\xff\x80" * 9):
        path.write_bytes(content)
        output = register(expected_code=2)
        assert f"error: {path}: expected regular_fundus_color_reference" in output
        assert "materialize reference_color again" in output


@pytest.mark.parametrize("home", ["/proc/x", "/proc", "FILE"])
def test_a_home_of_dagster_that_cannot_be_written_is_named(
    installation: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "file").touch()
    home = home.replace("FILE", str(tmp_path / "file"))
    monkeypatch.setenv("DAGSTER_HOME", home)
    output = register(expected_code=2)
    assert f"error: DAGSTER_HOME={home}: expected a folder that can be made and written, found " in output
    assert not installation.ledger_file("uwf700").exists()
