"""Text of messages that list many things: the first of them, and how many more there are."""

from collections.abc import Sequence


def listing(lines: Sequence[str], limit: int) -> list[str]:
    """At most ``limit`` lines, followed by ``and 7 more`` where there are more."""
    return [*lines[:limit], *([f"and {len(lines) - limit} more"] if len(lines) > limit else [])]


def enumeration(items: Sequence[object], limit: int, noun: str = "") -> str:
    """At most ``limit`` items in one line, and how many more there are.

    ``a, b and 7 more``, or ``a, b and 7 more batches`` with a noun.
    """
    more = f" and {len(items) - limit} more {noun}".rstrip() if len(items) > limit else ""
    return ", ".join(str(item) for item in items[:limit]) + more


def count_of(findings: Sequence[object], noun: str, plural: str = "") -> str:
    """``1 error``, ``2 errors``; ``plural`` for nouns that take no bare s."""
    return f"{len(findings)} {noun if len(findings) == 1 else plural or noun + 's'}"
