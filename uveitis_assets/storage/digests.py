"""Short digests by which artefacts and records show that what they were made from has changed."""

from __future__ import annotations

import hashlib


def short_digest(content: str | bytes, n_bytes: int = 8) -> str:
    """BLAKE2b of text (as UTF-8) or bytes as ``2 * n_bytes`` hex digits."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(data, digest_size=n_bytes).hexdigest()
