"""A project of its own with a few lanes, for tests that need other configurations than those under defs/."""

import importlib
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus_dataset import FundusDataset


def write_project(folder: Path, name: str, lanes: Mapping[str, str]) -> Path:
    """Write pyproject.toml and the package ``name`` with one defs.yaml per lane; returns the folder of the package.

    Args:
        folder: of the project; put it on the path to import ``<name>.definitions``.
        name: of the package.
        lanes: text of each defs.yaml by the name of its folder.
    """
    (folder / "pyproject.toml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(
        "[tool.dg]\n"
        'directory_type = "project"\n'
        "[tool.dg.project]\n"
        f'root_module = "{name}"\n'
        f'code_location_target_module = "{name}.definitions"\n'
        f'code_location_name = "{name}"\n'
        "[tool.dagster]\n"
        f'module_name = "{name}.definitions"\n'
        f'code_location_name = "{name}"\n'
    )
    package = folder / name
    for lane, text in lanes.items():
        path = package / "defs" / lane / "defs.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for module in (package, package / "defs"):
        (module / "__init__.py").write_text("")
    (package / "definitions.py").write_text(
        "import functools\n"
        "from pathlib import Path\n\n"
        "import dagster as dg\n\n"
        "from uveitis_assets.orchestration.antlr_runtime import read_both_grammar_formats\n"
        "from uveitis_assets.orchestration.run_liveness import in_process_executor\n\n"
        "read_both_grammar_formats()\n\n\n"
        "@dg.definitions\n"
        "@functools.cache\n"
        "def defs():\n"
        "    lanes = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
        "    return dg.Definitions.merge(lanes, dg.Definitions(executor=in_process_executor))\n"
    )
    return package


def load_project(folder: Path, name: str, lanes: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """Write the project and load its definitions."""
    write_project(folder, name, lanes)
    monkeypatch.syspath_prepend(folder)
    definitions: dg.Definitions = importlib.import_module(f"{name}.definitions").defs()
    return definitions


def fundus_lanes(package: Path) -> dict[str, LaneConfiguration]:
    """The fundus lanes of a written project, by their names."""
    found = dg.ComponentTree.for_project(package).get_all_components(of_type=FundusDataset)
    return {component.lane_name: component.configuration for component in found}
