"""Fixtures shared by all tests."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from uveitis_assets.storage.store import ArtefactStore

# Several workers share the cores: threads of each numerical library on top of them wait for each other. Set before
# torch and OpenCV are imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A time limit per example would fail on slow machines; derandomized examples make runs repeatable.
settings.register_profile("uveitis", deadline=None, derandomize=True)
settings.load_profile("uveitis")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector away from modules and tests, which stay: it would look at them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests of real processes: a long file that starts last would keep one worker busy alone."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images with truth; the test is skipped where it is absent."""
    folder = Path(os.environ.get("UVEITIS_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "uwf" / "images").is_dir():
        pytest.skip(f"real images are not at {folder}: set UVEITIS_REAL_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of small inputs with right answers; the test is skipped where it is absent."""
    folder = Path(os.environ.get("UVEITIS_CASES", REPOSITORY.parent / "shared" / "cases"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"small inputs with right answers are not at {folder}: set UVEITIS_CASES to their folder")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    """An empty artefact store with its raw folder, in a temporary folder."""
    (tmp_path / "data" / "raw").mkdir(parents=True)
    return ArtefactStore(root=tmp_path / "data", raw=tmp_path / "data" / "raw")
