"""Fixtures of the tests of landing."""

import os

import pytest


@pytest.fixture
def opened(monkeypatch):
    """Paths of all files opened by their descriptor, as landed files are, in the order in which they are opened."""
    paths = []
    real = os.open

    def counting(path, *rest, **more):
        paths.append(str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", counting)
    return paths
