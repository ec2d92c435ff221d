"""The commands of the README as a user types them, each in a process of its own."""

from __future__ import annotations

import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets.sample import write_uwf700
from uveitis_assets_tests.e2e.installation import Installation, land

pytestmark = pytest.mark.e2e

STAGES = ("roi_masks", "normalized_crops", "tiles")
NO_OVERLAYS = ("--config-json", '{"ops": {"uwf700__coco_labels": {"config": {"overlays": false}}}}')
ALL_LABELS = ("--partition-range", "fold0|train...fold4|test", *NO_OVERLAYS)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("sample")
    write_uwf700(raw, 6, 5, 320, 252, workers=1)
    return raw


def files(sample: Path, pattern: str) -> list[str]:
    return sorted(path.relative_to(sample).as_posix() for path in sample.glob(pattern))


def materialized(installation: Installation, asset: str) -> set[str]:
    with installation.instance() as instance:
        return instance.get_materialized_partitions(dg.AssetKey(["uwf700", asset]))


def test_register_says_what_is_new_changed_and_gone_and_adds_keys_once(tmp_path: Path, sample: Path) -> None:
    user = Installation(tmp_path)
    land(sample, user.raw, files(sample, "uwf-700/**/*.*"))
    first = user.succeed("uveitis-assets", "register", "uwf700")
    assert "uwf700: 6 images, 6 new, 0 changed" in first
    assert "1 partition keys added" in first
    assert "new: uwf700::Healthy-001" in first
    again = user.succeed("uveitis-assets", "register")
    assert "uwf700: 6 images, 0 new, 0 changed, 0 renamed, 0 relabelled, 0 gone, 0 returned; 0 partition" in again
    images = user.raw / "uwf-700" / "Images" / "Uveitis"
    (images / "Uveitis-001.jpg").write_bytes((images / "Uveitis-002.jpg").read_bytes() + b"\0")
    (images / "Uveitis-003.jpg").unlink()
    (images / "broken.jpg").write_bytes(b"")
    changes = user.succeed("uveitis-assets", "register", "uwf700")
    assert "1 new, 1 changed, 0 renamed, 0 relabelled, 1 gone" in changes
    assert "changed: uwf700::Uveitis-001" in changes
    assert "gone: uwf700::Uveitis-003" in changes
    assert "new batches: b00002" in changes
    assert "batches to materialize again: b00001" in changes
    assert "quarantined: uwf700::broken: empty_file" in changes
    with user.instance() as instance:
        assert instance.get_dynamic_partitions("uwf700_batches") == ["b00001", "b00002"]


def commands_in(output: str) -> list[list[str]]:
    return [shlex.split(line) for line in output.splitlines() if line.strip().startswith("dagster asset materialize")]


def test_the_commands_that_register_prints_bring_the_lane_up_to_date(tmp_path: Path, sample: Path) -> None:
    user = Installation(tmp_path)
    land(sample, user.raw, files(sample, "uwf-700/**/*.*"))
    first = commands_in(user.succeed("uveitis-assets", "register", "uwf700"))
    assert [command[-3:] for command in first] == [
        ["uwf700/manifest,uwf700/roi_masks,uwf700/normalized_crops,uwf700/tiles", "--partition", "b00001"],
        ["uwf700/coco_labels", "--partition-range", "fold0|train...fold4|test"],
    ]
    assert commands_in(user.succeed("uveitis-assets", "register", "uwf700")) == first, "nothing was run in between"
    for command in first:
        user.succeed(*command)
    assert commands_in(user.succeed("uveitis-assets", "register", "uwf700")) == []
    (user.raw / "uwf-700" / "Labels" / "Uveitis" / "Uveitis-001.txt").write_text("")
    again = commands_in(user.succeed("uveitis-assets", "register", "uwf700"))
    assert [command[-3:] for command in again] == [
        ["uwf700/manifest", "--partition", "b00001"],
        ["uwf700/coco_labels", "--partition-range", "fold0|train...fold4|test"],
    ]
    user.succeed(*again[0])
    assert commands_in(user.succeed("uveitis-assets", "register", "uwf700")) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["register", "uwf7000"], {}, "found no lane uwf7000; expected one of deepdrid, eyepacs, fgadr, uwf700"),
        (["register", "uwf700"], {"DAGSTER_HOME": ""}, "DAGSTER_HOME is not set"),
        (["register", "uwf700"], {"DAGSTER_HOME": "home"}, "expected an absolute path"),
        (["register", "fgadr"], {}, "raw/fgadr: expected the landing folder of fgadr, found none"),
        (["register", "uwf700"], {"UVEITIS_RAW": "LINKED"}, "expected a path below"),
        (
            ["register", "uwf700"],
            {"UVEITIS_DATA": "FILE", "UVEITIS_RAW": "LANDED"},
            "/locks: Not a directory; expected",
        ),
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
    tmp_path: Path, sample: Path, arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    user = Installation(tmp_path)
    (user.data / "raw" / "uwf-700").mkdir(parents=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "uwf-700").symlink_to(sample / "uwf-700")
    (tmp_path / "file").touch()
    places = {"LINKED": tmp_path / "linked", "FILE": tmp_path / "file", "LANDED": user.data / "raw"}
    user.environment = {name: str(places.get(value, value)) for name, value in environment.items()}
    code, output = user.run("uveitis-assets", *arguments)
    assert code == 2
    assert expected in output
    assert "Traceback" not in output


def test_one_range_run_and_runs_key_by_key_with_other_workers_write_the_same_bytes(
    tmp_path: Path, sample: Path
) -> None:
    """Both read images from the same UVEITIS_RAW outside their data folders."""
    raw = tmp_path / "elsewhere"
    shared = {"UVEITIS_RAW": str(raw), "UVEITIS_PATIENT_KEY_FILE": str(tmp_path / "patient_key")}
    one = Installation(tmp_path / "one", {**shared, "UVEITIS_WORKERS": "1"})
    other = Installation(tmp_path / "other", {**shared, "UVEITIS_WORKERS": "2"})
    first, second = files(sample, "uwf-700/Images/Uveitis/*"), files(sample, "uwf-700/Images/[HR]*/*")
    land(sample, raw, [*first, *files(sample, "uwf-700/Labels/*/*")])
    one.succeed("uveitis-assets", "register", "uwf700")
    other.succeed("uveitis-assets", "register", "uwf700")
    land(sample, raw, second)
    one.succeed("uveitis-assets", "register", "uwf700")
    other.succeed("uveitis-assets", "register", "uwf700")

    def in_one_run() -> None:
        one.materialize('+key:"uwf700/tiles"', "--partition-range", "b00001...b00002")
        one.materialize("uwf700/coco_labels", *ALL_LABELS)

    def key_by_key() -> None:
        other.materialize("uwf700/manifest,uwf700/roi_masks", "--partition", "b00002")
        assert materialized(other, "roi_masks") == {"b00002"}
        assert materialized(other, "tiles") == set()
        other.materialize('key:"uwf700/normalized_crops" or key:"uwf700/tiles"', "--partition", "b00002")
        other.materialize(
            "uwf700/manifest,uwf700/roi_masks,uwf700/normalized_crops,uwf700/tiles", "--partition", "b00001"
        )
        other.materialize("uwf700/coco_labels", "--partition", "fold0|train", *NO_OVERLAYS)
        assert materialized(other, "coco_labels") == {"fold0|train"}
        other.materialize("uwf700/coco_labels", *ALL_LABELS)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(in_one_run), pool.submit(key_by_key)]:
            done.result()
    for installation in (one, other):
        assert all(materialized(installation, asset) == {"b00001", "b00002"} for asset in ("manifest", *STAGES))
        assert len(materialized(installation, "coco_labels")) == 15
    expected = one.artefacts()
    assert len([name for name in expected if name.startswith("preproc/roi_masks/")]) == 6
    assert other.artefacts() == expected
    assert not (one.data / "raw").exists()


def test_a_key_that_is_not_registered_fails_and_names_it(tmp_path: Path, sample: Path) -> None:
    user = Installation(tmp_path)
    land(sample, user.raw, files(sample, "uwf-700/Images/RVO/*"))
    user.succeed("uveitis-assets", "register", "uwf700")
    code, output = user.run(
        "dagster", "asset", "materialize", "-m", "uveitis_assets.definitions",
        "--select", "uwf700/manifest", "--partition", "b00042",
    )  # fmt: skip
    assert code != 0
    assert "b00042" in output
    assert materialized(user, "manifest") == set()
