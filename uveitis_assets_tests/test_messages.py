"""Long lists in messages: the first of them, and how many more there are."""

import pytest

from uveitis_assets.messages import count_of, enumeration, listing


@pytest.mark.parametrize(
    ("limit", "lines", "line"),
    [
        (3, ["a", "b", "c"], "a, b, c"),
        (4, ["a", "b", "c"], "a, b, c"),
        (2, ["a", "b", "and 1 more"], "a, b and 1 more"),
        (1, ["a", "and 2 more"], "a and 2 more"),
    ],
)
def test_what_exceeds_the_limit_is_counted(limit: int, lines: list[str], line: str) -> None:
    assert listing(["a", "b", "c"], limit) == lines
    assert enumeration(["a", "b", "c"], limit) == line


def test_what_is_counted_may_be_named() -> None:
    assert enumeration([1, 2, 3], 1, "batches") == "1 and 2 more batches"
    assert enumeration([1, 2, 3], 3, "batches") == "1, 2, 3"
    assert listing([], 3) == []


def test_one_thing_is_in_the_singular() -> None:
    assert [count_of(["x"] * n, "error") for n in (0, 1, 2)] == ["0 errors", "1 error", "2 errors"]
    assert [count_of(["x"] * n, "batch", "batches") for n in (1, 2)] == ["1 batch", "2 batches"]
