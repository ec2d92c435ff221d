"""Reasons for quarantining an input: the reason codes and the exception that carries one.

A quarantined input stays listed with its reason; it never stops the other images of its batch.
"""

from __future__ import annotations

from typing import Literal

QuarantineReason = Literal[
    "empty_file",
    "not_an_image",
    "truncated",
    "wrong_extension",
    "unsupported_color_mode",
    "unsupported_bit_depth",
    "alpha_channel",
    "animated",
    "too_small",
    "too_large",
    "unreadable",
    "broken_symlink",
    "escapes_root",
    "missing",
    "changed_since_registration",
    "roi_not_found",
    "bad_label",
    "missing_masks",
    "damaged_artefact",
]

# Reasons that may be gone at the next run without the registered content having changed: such images are tried again
# every time, and keep the artefacts they had.
TRANSIENT_REASONS: frozenset[str] = frozenset(
    {"missing", "changed_since_registration", "unreadable", "broken_symlink", "escapes_root"}
)


class QuarantineError(ValueError):
    """An input that has to be set aside; ``reason`` is the code, ``detail`` the sentence for the user."""

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: QuarantineReason = reason
        self.detail = detail
