"""Base of all configuration models: immutable, strict, unknown fields are errors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]


# YAML 1.2 reads 2e-5 as a number, but PyYAML wants a point in it (2.0e-5) and hands it over as text.
_NUMBER_WITHOUT_POINT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


class Configuration(BaseModel):
    """Base of all configuration: immutable, unknown fields and values of another type are errors.

    Strict, because ``batch_size: yes`` would be 1 otherwise, and ``'16'`` 16: nobody means that. A whole number is a
    number still. Text is never a number, save one: ``2e-5``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _as_written_in_yaml(cls, values: object) -> object:
        """Lists for tuples, which YAML and JSON do not have, and numbers that PyYAML takes for text."""
        if not isinstance(values, Mapping):
            return values
        numeric = {name for name, field in cls.model_fields.items() if _holds_numbers(field.annotation)}
        return {name: _from_yaml(value, numeric=name in numeric) for name, value in values.items()}

    def fingerprint(self) -> str:
        """16 hex digits that change when any value changes."""
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()


def _holds_numbers(annotation: Any) -> bool:
    return annotation is float or any(_holds_numbers(part) for part in get_args(annotation))


def _from_yaml(value: object, *, numeric: bool) -> object:
    if isinstance(value, list | tuple):
        return tuple(_from_yaml(part, numeric=numeric) for part in value)
    if numeric and isinstance(value, str) and _NUMBER_WITHOUT_POINT.fullmatch(value):
        return float(value)
    return value


# What Dagster takes for an owner; it refuses others later, without file and line.
_OWNER = re.compile(r"team:.+|[A-Za-z0-9_][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", re.DOTALL)


def _owner(text: str) -> str:
    if not _OWNER.fullmatch(text):
        raise ValueError(f"expected an e-mail address or team:<name>, such as team:imaging, found {text!r}")
    return text


Owner = Annotated[str, AfterValidator(_owner)]


def path_below_data_root(root: str, kind: str, text: str) -> str:
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"expected a {kind} below {root} without `..`, found {text!r}")
    return text
