"""One small sample, one load of the definitions and one finished run, shared by the component tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets.components.fundus.lanes import load_lanes
from uveitis_assets.definitions import defs
from uveitis_assets.sample import write_fgadr, write_uwf700
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.components.running_platform import Platform, use


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder with nine ultra-widefield images (five labelled) and five regular ones with masks."""
    raw = tmp_path_factory.mktemp("sample") / "raw"
    write_uwf700(raw, 9, 1, 320, 252, workers=1)
    write_fgadr(raw, 5, 3, 160, workers=1)
    return raw


@pytest.fixture(scope="session")
def definitions() -> dg.Definitions:
    return defs()


@pytest.fixture
def platform(definitions: dg.Definitions, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The real definitions on an empty folder and an empty instance."""
    use(store, monkeypatch)
    return Platform(definitions, load_lanes(), store)


@pytest.fixture(scope="session")
def finished_once(
    definitions: dg.Definitions, sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """Both lanes from manifest to labels, uwf700 in three batches, made once per session; for reading only."""
    root = tmp_path_factory.mktemp("finished")
    store = ArtefactStore(root=root, raw=root / "raw")
    with pytest.MonkeyPatch.context() as patch:
        use(store, patch)
        platform = Platform(definitions, load_lanes(), store)
        names = sorted(path.relative_to(sample / "uwf-700").as_posix() for path in sample.glob("uwf-700/Images/*/*"))
        labels = [path.relative_to(sample / "uwf-700").as_posix() for path in sample.glob("uwf-700/Labels/*/*")]
        platform.land(sample, labels)
        for landing in (names[:3], names[3:6], names[6:]):
            platform.land(sample, landing)
            platform.register("uwf700")
        shutil.copytree(sample / "fgadr", store.raw / "fgadr")
        platform.register("fgadr")
        for result in (
            platform.run("uwf700", "b00001", "b00003"),
            platform.run_labels("uwf700"),
            platform.run_labels("uwf700", "fold0|train", "fold0|test", overlays=True),
            platform.run("fgadr", "b00001"),
            platform.run_labels("fgadr"),
        ):
            assert result.success
        pixels = [path for path in root.rglob("*.png") if path.is_relative_to(root / "preproc")]
        before = [path.stat().st_mtime_ns for path in pixels]
        yield platform
        assert [path.stat().st_mtime_ns for path in pixels] == before, "a test wrote into pixels that others share"


def _link_pixels(source: str, target: str) -> None:
    """Link images of the stages, 100 MB that are replaced or removed but never written to, and copy all else."""
    if source.endswith(".png") and {"preproc", "labels_debug"} & set(Path(source).parts):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture
def finished(finished_once: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A copy of the finished artefacts that a test may damage, with an instance that knows the batches and no run."""
    root = tmp_path / "finished"
    shutil.copytree(finished_once.store.root, root, copy_function=_link_pixels)
    store = ArtefactStore(root=root, raw=root / "raw")
    use(store, monkeypatch)
    platform = Platform(finished_once.definitions, finished_once.lanes, store)
    for lane in ("uwf700", "fgadr"):
        platform.add_batches(lane)
    return platform
