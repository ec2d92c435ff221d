"""Small checks that the readers of JSON files share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.labels.importing.foreign import ForeignFileError


def parsed(name: str, data: bytes, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    """The JSON value of a file.

    Raises:
        ForeignFileError: no JSON, or another kind of value.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ForeignFileError(f"{name}: expected JSON, found {error}") from error
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise ForeignFileError(f"{name}: expected {wanted}, found {type(value).__name__}")
    return value


def objects(value: object, what: str) -> Iterator[dict[str, Any]]:
    """The objects of a list.

    Raises:
        ForeignFileError: something else.
    """
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ForeignFileError(f"{what}: expected a list of objects, found {str(value)[:40]!r}")
    yield from value


def expect_list(value: object, what: str) -> list[Any]:
    """The value as a list.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list):
        raise ValueError(f"found {what} {str(value)[:40]!r}, expected a list")
    return value


def finite(values: object) -> NDArray[np.float64]:
    """Numbers as an array.

    Raises:
        ValueError: a value is no finite number.
    """
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"found {str(values)[:60]!r}, expected numbers") from error
    if not np.isfinite(array).all():
        raise ValueError(f"found {str(values)[:60]!r}, expected finite numbers")
    return array


def points_of(values: object) -> NDArray[np.float64]:
    """Points (n, 2) of a list of pairs, or of a flat list x1 y1 x2 y2.

    Raises:
        ValueError: something else, or a value that is no finite number.
    """
    array = finite(values)
    if array.ndim == 1 and array.size % 2 == 0:
        return array.reshape(-1, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"found {str(values)[:60]!r}, expected points of two numbers each")
    return array
