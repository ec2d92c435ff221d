"""Content hashes: the identity of a landed file and of a sample of several files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from blake3 import blake3


def content_hash(data: bytes) -> str:
    """BLAKE3 hex digest of a file's bytes."""
    return blake3(data).hexdigest()


def sample_content_hash(file_hashes: Sequence[str], roles: Sequence[str] = ()) -> str:
    """BLAKE3 hex digest of a sample of several files, from those of its files.

    Hashed are the sorted lines ``hash``, or ``hash role`` where there are roles, joined by line breaks. Names do not
    enter: a renamed folder, or renamed files in it, are the same sample, as a renamed file is.

    Args:
        file_hashes: content hash of each file.
        roles: what each file is in the sample; none, or one per file.
    """
    lines = (f"{digest} {role}" if role else digest for digest, role in zip_longest(file_hashes, roles, fillvalue=""))
    return content_hash("\n".join(sorted(lines)).encode())
