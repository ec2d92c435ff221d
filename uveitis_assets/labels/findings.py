"""What was doubtful in a label file that was read nevertheless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FindingKind = Literal["grey_mask", "duplicate_lesion", "corner_outside"]


@dataclass(frozen=True, slots=True)
class LabelFinding:
    """Kind and what was found; the detail opens with the label file and, for text files, the line."""

    kind: FindingKind
    detail: str
