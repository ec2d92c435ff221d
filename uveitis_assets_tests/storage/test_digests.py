"""Short digests."""

from __future__ import annotations

import hashlib

from uveitis_assets.storage.digests import short_digest


def test_text_and_its_utf8_bytes_have_the_digest_of_blake2b() -> None:
    text = "Fundus, œil gauche"
    expected = hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()
    assert short_digest(text) == short_digest(text.encode("utf-8")) == expected
    assert len(expected) == 16


def test_a_digest_has_as_many_bytes_as_asked_for() -> None:
    assert short_digest(b"content", 16) == hashlib.blake2b(b"content", digest_size=16).hexdigest()
    assert len(short_digest("", 4)) == 8
