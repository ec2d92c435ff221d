"""Writing of artefacts where the disk has no room for them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uveitis_assets.storage.files import read_json, write_bytes


@contextmanager
def room_in_a_file(n_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_without_room_is_named_and_leaves_what_was_there_and_no_half(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "masks.parquet"
    write_bytes(path, b"former")
    with room_in_a_file(1000), pytest.raises(OSError, match=r"deep/masks\.parquet"):
        write_bytes(path, bytes(5000))
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [("masks.parquet", b"former")]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\x80" * 9, b""])
def test_a_file_that_is_no_json_object_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "meta.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"meta\.json(:1)?: expected .*; delete or repair the file$"):
        read_json(path)
