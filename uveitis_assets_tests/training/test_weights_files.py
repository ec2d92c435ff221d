"""Weights files: written whole with their lineage, the same bytes for the same weights, and never run as code."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from uveitis_assets.detection.checkpoints.lineage import weights_lineage
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.storage.files import read_json
from uveitis_assets.training.weights_files import file_digest, parent_of, read_lineage, read_weights_file, save_weights

WEIGHTS = {
    "b.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.tensor([1, 2]),
    "half": torch.ones(2).bfloat16(),
}


def lineage(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "categories": {1: "foyer_choroidien", 2: "hyalite"},
        "data_fingerprint": "0123456789abcdef",
        "metrics": {"map_50": 0.25},
        "parent": None,
        "learned_images": ["uwf700::b", "uwf700::a"],
        "created_at": "2030-01-02T03:04:05Z",
    }
    return weights_lineage(DetectorConfiguration(), **{**values, **changes})


def test_weights_and_lineage_come_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "best.safetensors"
    save_weights(path, WEIGHTS, lineage())
    found = read_weights_file(path)
    assert found.tensors.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)
    assert found.details == lineage() == read_json(path.with_suffix(".json"))
    assert DetectorConfiguration(**found.details["configuration"]) == DetectorConfiguration()
    assert found.details["categories"] == {"1": "foyer_choroidien", "2": "hyalite"}
    assert sorted(file.name for file in path.parent.iterdir()) == ["best.json", "best.safetensors"]


def test_the_same_weights_and_lineage_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        save_weights(tmp_path / name, dict(reversed(WEIGHTS.items())) if name < "p" else WEIGHTS, lineage())
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_the_file_is_readable_by_safetensors_itself(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"view": WEIGHTS["b.weight"].T}, lineage())
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("view"), WEIGHTS["b.weight"].T)
        assert list(file.metadata()) == ["lineage"]


def test_a_parent_is_named_with_the_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_bytes(b"weights" * 1000)
    expected = hashlib.blake2b(b"weights" * 1000, digest_size=16).hexdigest()
    assert parent_of(tmp_path / "best.pth") == {"file": "best.pth", "digest": expected}
    assert file_digest(tmp_path / "best.pth") == expected
    assert lineage(parent=parent_of(tmp_path / "best.pth"))["parent"]["digest"] == expected


def test_a_lineage_without_the_models_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"configuration\.model"):
        save_weights(tmp_path / "w.safetensors", WEIGHTS, {"metrics": {}})
    with pytest.raises(ValueError, match="safetensors"):
        save_weights(tmp_path / "w.pth", WEIGHTS, lineage())
    assert list(tmp_path.iterdir()) == []


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["zip", "plain_pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, how: str) -> None:
    content = {"model": WEIGHTS, "config": _Attack(tmp_path / "was_here")}
    path = tmp_path / "evil.pth"
    if how == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"model": {}, "config": _Attack(tmp_path / "was_here")}, protocol=2))
    with pytest.raises(ValueError, match=r"evil\.pth"):
        read_weights_file(path)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"model": WEIGHTS}, path)
    else:
        save_weights(path, WEIGHTS, lineage())
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "noise": bytes(range(256)) * 4, "empty": b""}[damage])
    with pytest.raises(ValueError, match=str(path)):
        read_weights_file(path)


def test_files_without_tensors_and_missing_files_are_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": {"lr": 1}}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"none\.pth: expected tensors by name.*args, epoch"):
        read_weights_file(tmp_path / "none.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth: expected a dictionary"):
        read_weights_file(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        read_weights_file(tmp_path / "gone.pth")


def test_the_prefix_of_a_distributed_wrapper_is_taken_off(tmp_path: Path) -> None:
    torch.save({"model": {f"module.{name}": value for name, value in WEIGHTS.items()}}, tmp_path / "w.pth")
    assert read_weights_file(tmp_path / "w.pth").tensors.keys() == WEIGHTS.keys()


@pytest.mark.parametrize(("text", "found"), [("{not json", "expected JSON"), ("[1]", "names and values, found list")])
def test_a_lineage_that_cannot_be_read_is_named(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(save({"w": torch.ones(1)}, metadata={"lineage": text}))
    with pytest.raises(ValueError, match=rf"best\.safetensors: lineage: .*{found}.*again"):
        read_lineage(path)
    with pytest.raises(ValueError, match=r"best\.safetensors: lineage"):
        read_weights_file(path)
