"""Lesion categories, how label files call them, and which of them a lane keeps.

The list, the maps and the named policies stand in class_map.yaml beside this module. Category ids are positions in
the list (from 1) and are never renumbered, so that files made under different policies can be compared and merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

LesionLabelFormat = Literal["obb", "mask"]
MAP_OF_FORMAT: Mapping[LesionLabelFormat, str] = {"obb": "uwf700", "mask": "fgadr"}


class UnknownClassError(ValueError):
    """A category, policy or label class that is not in the class map; the message lists the known ones."""


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """What one lane's labels mean and which categories it keeps.

    ``category_ids`` maps a label class (class number or mask folder, as text) to a category id; ``kept`` holds the
    kept categories as id -> name in ascending id.
    """

    category_ids: Mapping[str, int]
    kept: Mapping[int, str]

    def category_of(self, label_class: str) -> int:
        """Category id of a label class, kept or not.

        Raises:
            UnknownClassError: the class is not mapped.
        """
        if label_class not in self.category_ids:
            known = ", ".join(sorted(self.category_ids, key=_natural_order))
            raise UnknownClassError(f"found class {label_class!r}, expected one of {known}")
        return self.category_ids[label_class]

    @property
    def reachable(self) -> dict[int, str]:
        """Kept categories that some label class maps to: fgadr's folders never give ``hyalite``."""
        return {key: name for key, name in self.kept.items() if key in set(self.category_ids.values())}

    def coco_categories(self) -> list[dict[str, Any]]:
        """The ``categories`` list of a COCO file."""
        return [{"id": category_id, "name": name} for category_id, name in self.kept.items()]


@dataclass(frozen=True, slots=True)
class ClassMap:
    """Categories in order of their ids, label-class maps and named policies."""

    categories: tuple[str, ...]
    maps: Mapping[str, Mapping[str, str]]
    policies: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> dict[int, str]:
        """Category id -> name."""
        return dict(enumerate(self.categories, start=1))

    def id_of(self, name: str) -> int:
        """COCO id of a category.

        Raises:
            UnknownClassError: there is no such category.
        """
        if name not in self.categories:
            raise UnknownClassError(f"found category {name!r}, expected one of {', '.join(self.categories)}")
        return self.categories.index(name) + 1

    def select(self, classes: Iterable[str]) -> dict[int, str]:
        """Categories named by a label-space policy, as id -> name in ascending id.

        ``classes`` holds category names; when it is the name of a policy alone, that policy's categories. Empty keeps
        all. (The name ``vascularite`` is both a category and the policy of just that category.)

        Raises:
            UnknownClassError: a name is neither a category nor a policy.
        """
        names: list[str] = []
        for name in classes:
            if name in self.policies:
                names.extend(self.policies[name])
            elif name in self.categories:
                names.append(name)
            else:
                known = f"the categories {', '.join(self.categories)} or the policies {', '.join(self.policies)}"
                raise UnknownClassError(f"found class {name!r}, expected {known}")
        kept = {self.id_of(name) for name in names} or set(self.names)
        return {category_id: name for category_id, name in self.names.items() if category_id in kept}

    def label_space(
        self,
        label_format: LesionLabelFormat,
        *,
        classes: Iterable[str] = (),
        label_classes: Mapping[str, str] | None = None,
    ) -> LabelSpace:
        """Combine a map and a policy.

        Args:
            label_format: chooses the shipped map: ``obb`` that of uwf700, ``mask`` that of fgadr.
            classes: label-space policy, see ``select``.
            label_classes: label class -> category name, instead of the shipped map when not empty.

        Raises:
            UnknownClassError: a name is not known.
        """
        mapping = label_classes or self.maps[MAP_OF_FORMAT[label_format]]
        return LabelSpace({key: self.id_of(name) for key, name in mapping.items()}, self.select(classes))


def load_class_map() -> ClassMap:
    """Read the shipped class map."""
    content = yaml.safe_load(resources.files(__package__ or "").joinpath("class_map.yaml").read_text("utf-8"))
    class_map = ClassMap(
        categories=tuple(content["categories"]),
        maps={name: dict(entries) for name, entries in content["maps"].items()},
        policies={name: tuple(names) for name, names in content["policies"].items()},
    )
    for names in (*(mapping.values() for mapping in class_map.maps.values()), *class_map.policies.values()):
        for name in names:
            class_map.id_of(name)
    return class_map


def _natural_order(label_class: str) -> tuple[int, str]:
    return (int(label_class) if label_class.isascii() and label_class.isdigit() else 0, label_class)
