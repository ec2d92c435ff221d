"""The commands of the README as a user types them, each in a process of its own."""

from __future__ import annotations

import shlex
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets.components.fundus.lanes import load_lanes
from uveitis_assets.definitions import defs
from uveitis_assets.sample import write_uwf700
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.components.running_platform import Platform, artefacts, use
from uveitis_assets_tests.e2e.installation import Installation, land

pytestmark = pytest.mark.e2e

BATCH_ASSETS = ("manifest", "roi_masks", "normalized_crops", "tiles")
WHOLE_LANE = "uwf700/manifest,uwf700/roi_masks,uwf700/normalized_crops,uwf700/tiles"


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


def commands_in(output: str) -> list[list[str]]:
    return [shlex.split(line) for line in output.splitlines() if line.strip().startswith("dagster asset materialize")]


def test_the_commands_that_register_prints_bring_a_lane_up_to_date(
    tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The raw folder is outside the data folder; runs in this process with other workers give the same bytes."""
    raw, key_file = tmp_path / "raw", tmp_path / "patient_key"
    user = Installation(
        tmp_path / "user", {"UVEITIS_RAW": str(raw), "UVEITIS_PATIENT_KEY_FILE": str(key_file), "UVEITIS_WORKERS": "1"}
    )
    monkeypatch.setenv("UVEITIS_PATIENT_KEY_FILE", str(key_file))
    other = Platform(defs(), load_lanes(), ArtefactStore(root=tmp_path / "other", raw=raw))

    def register() -> str:
        """In this process but for the first one, which is a command of its own."""
        other.register("uwf700")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in user.variables().items():
                patch.setenv(name, value)
            done = CliRunner().invoke(app, ["register", "uwf700"])
        assert done.exit_code == 0, done.output
        return done.output

    land(sample, raw, [*files(sample, "uwf-700/Images/Uveitis/*"), *files(sample, "uwf-700/Labels/*/*")])
    other.register("uwf700")
    printed = user.succeed("uveitis-assets", "register", "uwf700")
    assert "uwf700: 4 images, 4 new, 0 changed" in printed
    assert "1 partition keys added" in printed
    assert [command[-3:] for command in commands_in(printed)] == [
        [WHOLE_LANE, "--partition", "b00001"],
        ["uwf700/coco_labels", "--partition-range", "fold0|train...fold4|test"],
    ]
    land(sample, raw, files(sample, "uwf-700/Images/[HR]*/*"))
    commands = commands_in(register())
    assert commands[0][-3:] == [WHOLE_LANE, "--partition-range", "b00001...b00002"]
    for command in commands:
        user.succeed(*command)
    assert all(materialized(user, asset) == {"b00001", "b00002"} for asset in BATCH_ASSETS)
    assert len(materialized(user, "coco_labels")) == 15
    assert commands_in(register()) == []

    use(other.store, monkeypatch)
    monkeypatch.setenv("UVEITIS_WORKERS", "2")
    for batch in ("b00002", "b00001"):
        for asset in BATCH_ASSETS:
            assert other.run("uwf700", batch, only=[asset]).success
    assert other.run_labels("uwf700").success
    expected = user.artefacts()
    assert len([name for name in expected if name.startswith("preproc/roi_masks/")]) == 6
    assert artefacts(other.store.root) == expected
    assert not (user.data / "raw").exists()

    (raw / "uwf-700" / "Labels" / "Uveitis" / "Uveitis-001.txt").write_text("")
    commands = commands_in(register())
    assert [command[-3:] for command in commands] == [
        ["uwf700/manifest", "--partition", "b00001"],
        ["uwf700/coco_labels", "--partition-range", "fold0|train...fold4|test"],
    ]
    with user.instance() as instance:
        use(ArtefactStore(user.data, raw), monkeypatch)
        assert Platform(other.definitions, other.lanes, ArtefactStore(user.data, raw), instance).run("uwf700").success
    assert commands_in(register()) == []


def test_a_key_that_is_not_registered_fails_and_names_it(tmp_path: Path) -> None:
    user = Installation(tmp_path)
    code, output = user.run(
        "dagster", "asset", "materialize", "-m", "uveitis_assets.definitions",
        "--select", "uwf700/manifest", "--partition", "b00042",
    )  # fmt: skip
    assert code != 0
    assert "b00042" in output
    assert materialized(user, "manifest") == set()
