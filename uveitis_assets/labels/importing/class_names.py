"""Translates classes of foreign files into label classes of a lane, as the user states them."""

from __future__ import annotations

from collections.abc import Mapping

from uveitis_assets.labels.class_map import LabelSpace
from uveitis_assets.labels.importing.foreign import ForeignFileError


class ClassNames:
    """Label class of the lane (class number or mask folder) for a class of the foreign files.

    A class that the user maps goes where the mapping says. Others keep their meaning only where it is certain: a name
    that is the lane's own, or a class number once the first number is stated.
    """

    def __init__(
        self, label_space: LabelSpace, stated: Mapping[str, str], categories: Mapping[int, str], *, first: int | None
    ) -> None:
        """Check the user's mapping.

        ``first`` is the first class number of the files, None where they hold names.
        """
        self._space = label_space
        self._names = {name: number for number, name in categories.items()}
        self._stated = {name: self._target(name, target) for name, target in stated.items()}
        self._first = first

    @property
    def stated_targets(self) -> set[str]:
        """Label classes that the user maps something to: the images were looked at for them."""
        return {target for target in self._stated.values() if target is not None}

    def label_class(self, name: str) -> str | None:
        """The lane's label class; None: the user leaves this class out.

        Raises:
            ValueError: nothing says what the class means.
        """
        if name in self._stated:
            return self._stated[name]
        lane_numbers = [int(number) for number in self._space.category_ids if number.isdigit()]
        if name.isascii() and name.isdigit():
            if self._first is not None and lane_numbers:
                number = str(int(name) - self._first + min(lane_numbers))
                if number in self._space.category_ids:
                    return number
                raise ValueError(f"found class {name}, which is {number} in the lane, which has no such class")
        elif name in self._space.category_ids:
            return name
        elif name in self._names:
            return self._target(name, name)
        raise ValueError(f"found class {name!r}, which nothing maps; add --class '{name}=<class of the lane>'")

    def _target(self, name: str, target: str) -> str | None:
        if not target:
            return None
        if target in self._space.category_ids:
            return target
        known = ", ".join(self._space.category_ids)
        if target not in self._names:
            raise ForeignFileError(
                f"--class {name}={target}: expected a category or a label class of the lane ({known}), or nothing to "
                "leave the class out"
            )
        number = self._names[target]
        own = [label_class for label_class, category in self._space.category_ids.items() if category == number]
        if len(own) != 1:
            raise ForeignFileError(
                f"--class {name}={target}: expected a category that one label class of the lane has, found "
                f"{', '.join(own) or 'none'}; name the label class ({known})"
            )
        return own[0]
