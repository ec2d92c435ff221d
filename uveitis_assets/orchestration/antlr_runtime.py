"""Makes one antlr runtime read the grammars of Dagster's asset selection and of Hydra (for sam2).

Dagster's selection parser is generated for antlr 4.13, Hydra 1.3 pins the runtime 4.9, and pip cannot install both.
The formats of their serialized grammars (4 and 3) differ by a header and by the width of numbers, so that the 4.9
runtime is taught to read format 4 too. Without it every ``--select`` fails with a TypeError. It can go when Hydra
1.4, which brings its own runtime, is released and sam2 works with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Format4(list[int]):
    """Numbers of a grammar in format 4, as told apart from format 3's characters."""


def read_both_grammar_formats() -> None:
    """Adds format 4 to the installed runtime; does nothing where it is supported already.

    May be called repeatedly.
    """
    # The package has no type annotations.
    runtime: Any = import_module("antlr4.atn.ATNDeserializer")
    deserializer = runtime.ATNDeserializer
    if runtime.SERIALIZED_VERSION != 3 or hasattr(deserializer, "reads_format_4"):
        return
    reset, check_uuid = deserializer.reset, deserializer.checkUUID

    def reset_either(self: Any, data: str | list[int]) -> None:
        if isinstance(data, str):
            reset(self, data)
        else:
            self.data = _Format4([runtime.SERIALIZED_VERSION, *data[1:]])
            self.pos = 0

    def check_uuid_either(self: Any) -> None:
        if isinstance(self.data, _Format4):
            # Format 4 has no such header, and one list of character sets as the base version has.
            self.uuid = runtime.BASE_SERIALIZED_UUID
        else:
            check_uuid(self)

    deserializer.reset, deserializer.checkUUID = reset_either, check_uuid_either
    deserializer.reads_format_4 = True
    # It would print a line about the versions for every selection.
    recognizer: Any = import_module("antlr4.Recognizer").Recognizer
    recognizer.checkVersion = lambda *_: None
