"""Finds the eye in a file name or a table cell. Whole tokens only: `_large` is not left."""

from __future__ import annotations

import re

from uveitis_assets.landing.samples import Eye

_EYE_BY_TOKEN: dict[str, Eye] = {"l": "L", "left": "L", "os": "L", "og": "L", "r": "R", "right": "R", "od": "R"}
_WORD = re.compile(r"[^\W_]+")
# A token with a running number: l1, r20, 0012L, OD3. A single letter before many digits is a record number.
_NUMBERED = re.compile(r"\d*(left|right|os|og|od|[lr](?!\d{3}))\d*", re.IGNORECASE)
_CAMEL_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[^\WA-Z\d_]+")


def eye_from_name(name: str) -> Eye | None:
    """Find the eye in a file name stem such as ``10_left``, ``56_r3``, ``LeftEye`` or ``scan-OD``.

    Words are separated by anything but letters and digits, then by camel case. None without an eye token and with
    contradictory ones.
    """
    eyes: set[Eye] = set()
    for word in _WORD.findall(name):
        numbered = _NUMBERED.fullmatch(word)
        if numbered:
            eyes.add(_EYE_BY_TOKEN[numbered[1].lower()])
        elif word.isalpha():
            eyes.update(
                _EYE_BY_TOKEN[part.lower()] for part in _CAMEL_PART.findall(word) if part.lower() in _EYE_BY_TOKEN
            )
    return eyes.pop() if len(eyes) == 1 else None
