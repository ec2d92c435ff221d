"""Checks that each defs.yaml is YAML and holds components, with messages that name file and line.

Dagster's own messages about these mistakes name neither, and a key that stands twice, of which the last would win, it
does not report at all.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import dagster as dg
import yaml

import uveitis_assets
from uveitis_assets.configuration import Configuration

PACKAGE = Path(uveitis_assets.__file__).parent
"""The installed package; its lanes stand in defs/."""

_MERGE = "tag:yaml.org,2002:merge"


class DefsFileError(ValueError):
    """A defs.yaml that cannot be read as components; the message names file, line and what was expected."""


def check_defs_files(folder: Path) -> None:
    """Check that each defs.yaml below a folder holds components whose types exist.

    Values of the attributes are left to Dagster, which names file and line.

    Raises:
        DefsFileError: one does not.
    """
    for file in sorted(folder.rglob("defs.yaml")):
        documents = _parse(file)
        if all(isinstance(document, yaml.ScalarNode) and not document.value for document in documents):
            raise DefsFileError(
                f"{file}: expected `type` and `attributes` of a component, found an empty file; remove it"
            )
        for document in documents:
            _check_nodes(file, document)
            if not isinstance(document, yaml.MappingNode):
                _refuse(file, document, f"expected `type` and `attributes` of a component, found {_kind(document)}")
            _check_component(file, document)


def _parse(file: Path) -> list[yaml.Node]:
    content = file.read_bytes()
    try:
        return list(yaml.compose_all(content.decode("utf-8"), yaml.SafeLoader))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DefsFileError(
            f"{file}:{line}: expected UTF-8, found the byte 0x{content[error.start]:02x}; save the file as UTF-8"
        ) from error
    except yaml.reader.ReaderError as error:
        line = content.decode("utf-8").count("\n", 0, error.position) + 1
        raise DefsFileError(
            f"{file}:{line}: expected text, found the character U+{error.character:04X}; remove it"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        context = f" ({error.context})" if error.context else ""
        raise DefsFileError(f"{file}:{line}: expected YAML: {error.problem}{context}") from error


def _check_nodes(file: Path, document: yaml.Node) -> None:
    """Refuse tags that YAML does not have, and keys that are no names or stand in one mapping twice."""
    for node in _nodes(document):
        if node.tag not in yaml.SafeLoader.yaml_constructors and node.tag != _MERGE:
            _refuse(file, node, f"expected a plain value, found the tag {node.tag}; remove it")
        if not isinstance(node, yaml.MappingNode):
            continue
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse(file, key, f"expected the name of a field, found {_kind(key)}; put text with braces in quotes")
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key:
                line = first.start_mark.line + 1
                _refuse(file, key, f"{key.value}: expected once, found in line {line} already; remove one of them")


def _nodes(document: yaml.Node) -> Iterator[yaml.Node]:
    """Each node once: an alias stands for a node that may hold itself."""
    waiting, seen = [document], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_component(file: Path, component: yaml.MappingNode) -> None:
    fields = {key.value: (key, value) for key, value in component.value}
    if "type" not in fields or not isinstance(fields["type"][1], yaml.ScalarNode):
        return  # Dagster names file and line.
    type_node = fields["type"][1]
    if type_node.value.startswith("."):
        return  # A module beside the file, which Dagster finds.
    try:
        found = _imported(type_node.value)
    except ImportError:
        return  # A component whose own imports fail does exist, and Dagster shows why it cannot be used.
    if not (isinstance(found, type) and issubclass(found, dg.Component)):
        _refuse(
            file,
            type_node,
            "type: expected a component, such as uveitis_assets.components.fundus_dataset.FundusDataset, found "
            f"{type_node.value!r}, which {'does not exist' if found is None else 'is none'}",
        )
    model = found.get_model_cls()
    if model is None or not issubclass(model, Configuration):
        return
    if "attributes" not in fields:
        others = ", ".join(f"`{name}`" for name in fields)
        _refuse(file, component, f"expected `type` and `attributes` of a {found.__name__}, found only {others}")
    key, attributes = fields["attributes"]
    if not isinstance(attributes, yaml.MappingNode) or not attributes.value:
        empty = not attributes.value
        shown = "none" if empty else _kind(attributes)
        _refuse(file, key, f"attributes: expected the fields of a {found.__name__}, found {shown}")


def _imported(type_name: str) -> object:
    """What a dotted name stands for; None where there is no such thing."""
    module_name, _, name = type_name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            return None
        raise
    except ValueError:  # no module in the name
        return None


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "fields"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _refuse(file: Path, node: yaml.Node, message: str) -> NoReturn:
    raise DefsFileError(f"{file}:{node.start_mark.line + 1}: {message}")
