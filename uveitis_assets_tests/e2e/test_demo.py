"""The demo through the real command line: every asset of two lanes and a detector that has to find what it learned."""

import json
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets_tests.e2e.installation import Installation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    user = Installation(tmp_path_factory.mktemp("demo"), {"UVEITIS_WORKERS": "2"})
    output = user.succeed("uveitis-assets", "demo", timeout_s=1500)
    assert "Made in" in output
    assert "make dev" in output
    return user


def test_a_detector_finds_what_it_learned_by_heart(demo: Installation) -> None:
    report = json.loads((demo.data / "runs/overfit_10/val_report.json").read_text())
    assert report["n_images"] == 10
    assert report["ap"]["0.5"] >= 0.9


def test_every_image_of_the_lane_has_predictions_and_those_with_detections_have_pictures(demo: Installation) -> None:
    files = sorted((demo.data / "preds/overfit_10").glob("*.json"))
    assert len(files) == 24
    overlays = {path.stem for path in (demo.data / "preds_vis/overfit_10").glob("*.png")}
    heat_maps = {path.stem for path in (demo.data / "preds_vis/overfit_10/heat_maps").glob("*.png")}
    found = {path.stem for path in files if json.loads(path.read_text())["predictions"]}
    assert found
    assert overlays == heat_maps == found


def test_the_ui_has_the_materializations_and_the_checks_passed(demo: Installation) -> None:
    with demo.instance() as instance:
        for asset, partitions in (
            ("overfit_10/checkpoint", {"fold0"}),
            ("overfit_10/evaluation", {"fold0"}),
            ("overfit_10/predictions", {"b00001"}),
            ("uwf700/tiles", {"b00001"}),
        ):
            assert instance.get_materialized_partitions(dg.AssetKey(asset.split("/"))) == partitions
        quality = dg.AssetCheckKey(dg.AssetKey(["overfit_10", "evaluation"]), "detection_quality")
        (record,) = instance.event_log_storage.get_asset_check_execution_history(quality, limit=1)
        assert record.evaluation is not None
        assert record.evaluation.passed


def test_the_demo_again_repeats_nothing(demo: Installation) -> None:
    weights = demo.data / "runs/overfit_10/checkpoints/best.safetensors"
    before = weights.stat().st_mtime_ns
    demo.succeed("uveitis-assets", "demo", timeout_s=600)
    assert weights.stat().st_mtime_ns == before


def test_other_peoples_images_are_left_alone(tmp_path: Path) -> None:
    user = Installation(tmp_path)
    photograph = user.raw / "uwf-700" / "Images" / "a.jpg"
    photograph.parent.mkdir(parents=True)
    photograph.write_bytes(b"somebody's")
    code, output = user.run("uveitis-assets", "demo", timeout_s=300)
    assert code == 2
    assert "found other images than this sample" in output
    assert photograph.read_bytes() == b"somebody's"
