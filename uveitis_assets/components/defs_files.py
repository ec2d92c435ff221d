"""What Dagster says of a defs.yaml without naming the file: that it is empty, or that its type does not exist."""

import importlib
from pathlib import Path

import yaml


def check_defs_files(folder: Path) -> None:
    """Look whether each defs.yaml below a folder holds components, and whether their types exist.

    Everything else in the files is left to Dagster, which names file and line.

    Raises:
        ValueError: one does not; names file, line, and what was expected.
        yaml.YAMLError: a file is no YAML; names file and line.
    """
    for file in sorted(folder.rglob("defs.yaml")):
        with file.open("rb") as stream:
            documents = list(yaml.compose_all(stream, yaml.SafeLoader))
        if all(isinstance(document, yaml.ScalarNode) and not document.value for document in documents):
            raise ValueError(f"{file}: expected `type` and `attributes` of a component, found an empty file; remove it")
        for document in documents:
            if isinstance(document, yaml.MappingNode):
                _check_type(file, document)


def _check_type(file: Path, component: yaml.MappingNode) -> None:
    for key, value in component.value:
        if key.value != "type" or not isinstance(value, yaml.ScalarNode) or _exists(value.value):
            continue
        raise ValueError(
            f"{file}:{value.start_mark.line + 1}: type: expected a component, such as "
            f"uveitis_assets.components.fundus_dataset.FundusDataset, found {value.value!r}, which does not exist"
        )


def _exists(type_name: str) -> bool:
    module_name, _, name = type_name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        # A component whose own imports fail does exist, and Dagster shows why it cannot be used.
        return error.name is not None and not f"{module_name}.".startswith(f"{error.name}.")
    except ValueError:  # no module in the name
        return False
