"""Weights of detectors with and without a cascade, and with other numbers of stages, start one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uveitis_assets.detection.checkpoints.loading import load_detector_weights, load_trained_detector
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.training.weights_files import save_weights
from uveitis_assets.training.weights_loading import WeightsMismatchError
from uveitis_assets_tests.detection.checkpoints.legacy_files import legacy_transformer_state, write_legacy
from uveitis_assets_tests.detection.models.test_detector import SMALL
from uveitis_assets_tests.detection.models.tiny_transformer import tiny_configuration, use_tiny_shapes

LATER = "roi_heads.later_stages."


def configuration(stages: int, **changes: Any) -> DetectorConfiguration:
    return DetectorConfiguration.model_validate({"model": {**SMALL, "head_stages": stages, **changes}})


def detector(stages: int, seed: int, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_detector(configuration(stages, **changes).model)


def written(path: Path, stages: int, **changes: Any) -> dict[str, Tensor]:
    """Weights of a detector that ``path`` holds."""
    state = detector(stages, 1, **changes).state_dict()
    lineage = {"configuration": configuration(stages, **changes).model_dump(mode="json")}
    save_weights(path, state, lineage)
    return {name: value.clone() for name, value in state.items()}


def regressions(*stages: int) -> tuple[str, ...]:
    return tuple(f"{LATER}{stage}.box_predictor.bbox_pred.{kind}" for stage in stages for kind in ("bias", "weight"))


def source_of(name: str, source: str) -> str:
    """The name of the same layer of the stage ``source``."""
    return source + name.split(".", 3)[3]


def test_a_detector_without_a_cascade_starts_every_stage_of_one(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    given = written(file, 1)
    model = detector(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_detector_weights(model, file)
    # Their box code is another, and their box is one for all classes.
    assert report.missing == regressions(0, 1)
    assert report.unexpected == report.shape_mismatch == ()
    copied = [name for name in before if name.startswith(LATER) and "bbox_pred" not in name]
    assert report.adapted == tuple(sorted(f"{name}: from {source_of(name, 'roi_heads.')}" for name in copied))
    for name, value in model.state_dict().items():
        if name in report.missing:
            expected = before[name]
        else:
            expected = given[source_of(name, "roi_heads.") if name.startswith(LATER) else name]
        assert torch.equal(value, expected), name


def test_other_categories_start_all_predictors_anew_and_the_report_says_so(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    given = written(file, 1, n_categories=5)
    model = detector(2, 2)
    report = load_detector_weights(model, file)
    anew = {line.partition(":")[0] for line in report.shape_mismatch}
    first = "roi_heads.box_predictor."
    assert anew == {
        *(f"{first}{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")),
        *(f"{LATER}0.box_predictor.cls_score.{kind}" for kind in ("weight", "bias")),
    }
    assert torch.equal(model.state_dict()[f"{LATER}0.box_head.fc6.weight"], given["roi_heads.box_head.fc6.weight"])


def test_further_stages_start_as_the_last_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    given = written(file, 2)
    model = detector(3, 2)
    report = load_detector_weights(model, file)
    assert report.missing == regressions(1)
    state = model.state_dict()
    for name in (name for name in given if name.startswith(LATER)):
        assert torch.equal(state[name], given[name])
        further = source_of(name, f"{LATER}1.")
        assert torch.equal(state[further], given[name]) == ("bbox_pred" not in name)


def test_a_detector_without_a_cascade_takes_the_first_stage_of_one(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    given = written(file, 3)
    model = detector(1, 2)
    report = load_detector_weights(model, file)
    assert report.share == 1.0
    assert report.unexpected == tuple(sorted(name for name in given if name.startswith(LATER)))
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())


def test_a_head_of_another_width_does_not_hide_behind_the_stages(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    written(file, 1, head_width=48)
    model = detector(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsMismatchError, match=r"at least 50\.0% of the box head, found "):
        load_detector_weights(model, file, min_matched=0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_without_predictors_all_features_of_every_stage_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    given = written(file, 1, n_categories=90)
    model = detector(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_detector_weights(model, file, mode="features", min_matched=1.0)
    assert report.missing == report.shape_mismatch == ()
    for name, value in model.state_dict().items():
        if "box_predictor" in name or name.startswith(("rpn.head.cls_logits", "rpn.head.bbox_pred")):
            assert torch.equal(value, before[name])
        else:
            assert torch.equal(value, given[source_of(name, "roi_heads.") if name.startswith(LATER) else name])


def test_a_file_of_the_earlier_scripts_starts_a_cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_shapes(monkeypatch)
    torch.manual_seed(0)
    state = legacy_transformer_state()
    path = write_legacy(tmp_path / "best.pth", state)
    model = build_detector(tiny_configuration(neck="earlier_upsampled", head_stages=3))
    report = load_detector_weights(model, path)
    assert report.missing == regressions(0, 1)
    assert torch.equal(model.state_dict()[f"{LATER}1.box_head.fc7.weight"], state["roi_heads.box_head.fc7.weight"])


def test_a_cascade_is_rebuilt_from_its_file_alone_and_predicts_the_same(tmp_path: Path) -> None:
    changes = {"later_stage_ious": (0.55, 0.65), "box_score_threshold": 0.0}
    model = detector(3, 1, **changes)
    lineage = {"configuration": configuration(3, **changes).model_dump(mode="json")}
    # Through JSON, as files hold it.
    save_weights(tmp_path / "best.safetensors", model.state_dict(), json.loads(json.dumps(lineage)))
    content = {"model": detector(3, 9, **changes).state_dict(), "average": model.state_dict()}
    torch.save({**content, "config": lineage["configuration"]}, tmp_path / "last.pth")
    tile = torch.rand(3, 64, 64)
    for name in ("best.safetensors", "last.pth"):
        rebuilt, found = load_trained_detector(tmp_path / name)
        assert found == configuration(3, **changes).model
        with torch.no_grad():
            (before,), (after,) = model.eval()([tile]), rebuilt([tile])
        assert len(before["boxes"]) > 0
        assert all(torch.equal(before[key], after[key]) for key in before)
