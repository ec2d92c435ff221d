"""Without the packages of the extra ``onnx`` the command says what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from uveitis_assets.cli import app


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_names_the_extra_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = CliRunner().invoke(app, ["export-onnx", "uveitis_ft", str(tmp_path / "detector.onnx")])
    assert done.exit_code == 2
    assert "pip install 'uveitis-assets[onnx]'" in done.output
    assert list(tmp_path.iterdir()) == []
