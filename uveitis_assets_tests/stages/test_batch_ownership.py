"""Artefacts whose image left its batch: removed, left to another batch, never mixed with those of new content."""

import threading

import pytest

from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.fundus.image_stages import ImageStages
from uveitis_assets.landing.configuration import DatasetConfiguration, ImageFolderConfiguration
from uveitis_assets.landing.registration import register
from uveitis_assets.stages.batch_ownership import BatchOwnership, batch_ownership, ids_owned_by_other_batches
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.fundus.preprocess_inputs import SMALL, fundus_picture, preprocess_registered
from uveitis_assets_tests.fundus.preprocess_inputs import land as land_picture
from uveitis_assets_tests.patience import patience

DATASET = DatasetConfiguration(name="lane", layout="image_folder", folder="lane", batch_size=2)


def run(store, batch, stages=STAGES, configuration=SMALL, dataset=DATASET):
    return preprocess_registered(store, dataset, batch, stages, configuration)


def artefacts_of(store, name):
    """Bytes of every artefact of one image by path, whatever the stage."""
    return {
        path.relative_to(store.root).as_posix(): path.read_bytes()
        for path in sorted((store.root / "preproc").rglob("*"))
        if path.is_file() and f"lane__{name}" in path.as_posix()
    }


@pytest.fixture
def made(store):
    """Two images, a and b, in one batch, preprocessed."""
    land_picture(store, "a.png", fundus_picture(1))
    land_picture(store, "b.png", fundus_picture(2))
    register(store, DATASET)
    run(store, "b00001")
    return store


def lock_requests(monkeypatch, thread, wanted):
    """An event that is set once a thread asks for a lock."""
    asks = threading.Event()
    original = ArtefactStore.lock

    def lock(self, name):
        if threading.current_thread() is thread and name == wanted:
            asks.set()
        return original(self, name)

    monkeypatch.setattr(ArtefactStore, "lock", lock)
    return asks


def test_artefacts_of_a_removed_image_are_removed_when_its_batch_runs(made):
    kept = artefacts_of(made, "b")
    (made.raw / "lane" / "a.png").unlink()
    register(made, DATASET)
    run(made, "b00001", ["roi_masks"])
    assert not made.roi_mask("lane__a").exists()
    assert made.normalized_crop("lane__a").exists(), "only stages that were asked for are touched"
    run(made, "b00001")
    assert artefacts_of(made, "a") == {}
    assert not list((made.root / "preproc" / "tiles").glob("lane__a*"))
    assert artefacts_of(made, "b") == kept


def test_a_removed_image_that_comes_back_is_made_again(made):
    before = artefacts_of(made, "a")
    path = made.raw / "lane" / "a.png"
    content = path.read_bytes()
    path.unlink()
    register(made, DATASET)
    run(made, "b00001")
    path.write_bytes(content)
    register(made, DATASET)
    assert run(made, "b00001").stages["tiles"].n_done == 1
    assert artefacts_of(made, "a") == before


def test_artefacts_made_at_another_size_before_the_image_was_removed_go_too(made):
    (made.raw / "lane" / "a.png").unlink()
    register(made, DATASET)
    larger = SMALL.model_copy(update={"tiling": SMALL.tiling.model_copy(update={"global_size": 160})})
    assert made.global_image("lane__a", 128).exists()
    run(made, "b00001", configuration=larger)
    assert artefacts_of(made, "a") == {}


def test_the_batch_that_a_replaced_image_left_leaves_its_successor_alone(made):
    land_picture(made, "a.png", fundus_picture(7))
    assert ids_owned_by_other_batches(made, "lane", "b00001", ["lane::a", "lane::b", "lane::c"]) == frozenset()
    register(made, DATASET)
    assert batch_ownership(made, "lane", "b00002") == BatchOwnership(("b00001",), ())
    assert batch_ownership(made, "lane", "b00001") == BatchOwnership((), ())
    assert ids_owned_by_other_batches(made, "lane", "b00001", ["lane::a", "lane::b"]) == {"lane::a"}
    assert ids_owned_by_other_batches(made, "lane", "b00002", ["lane::a", "lane::b"]) == {"lane::b"}
    run(made, "b00002")
    after = artefacts_of(made, "a")
    run(made, "b00001")
    assert artefacts_of(made, "a") == after


def test_where_ids_come_from_the_content_a_replaced_image_s_artefacts_go(store):
    options = ImageFolderConfiguration(identify_by_content=True)
    dataset = DatasetConfiguration(name="lane", layout="image_folder", folder="lane", image_folder=options)
    land_picture(store, "a.png", fundus_picture(1))
    register(store, dataset)
    run(store, "b00001", dataset=dataset)
    former = set(artefacts_of(store, "img_"))
    land_picture(store, "a.png", fundus_picture(2))
    register(store, dataset)
    run(store, "b00001", dataset=dataset)
    run(store, "b00002", dataset=dataset)
    assert former
    assert former.isdisjoint(artefacts_of(store, "img_"))
    assert len(artefacts_of(store, "img_")) == len(former)


def test_a_run_that_began_before_an_image_was_replaced_cannot_mix_with_the_successor_s(store, tmp_path, monkeypatch):
    land_picture(store, "a.png", fundus_picture(1))
    register(store, DATASET)
    has_mask, may_go_on = threading.Event(), threading.Event()
    original = ImageStages.run

    def paused(self, stage):
        if stage == "normalized_crops" and first[0]:
            first[0] = False
            has_mask.set()
            assert may_go_on.wait(patience(30))
        return original(self, stage)

    first = [True]
    monkeypatch.setattr(ImageStages, "run", paused)
    earlier = threading.Thread(target=run, args=(store, "b00001"))
    earlier.start()
    assert has_mask.wait(patience(30))
    land_picture(store, "a.png", fundus_picture(7, width=220, height=210))
    assert register(store, DATASET).new_batches == ("b00002",)
    later = threading.Thread(target=run, args=(store, "b00002"))
    waits = lock_requests(monkeypatch, later, "lane.b00001.preprocess")
    later.start()
    assert waits.wait(patience(30))
    may_go_on.set()
    earlier.join(patience(30))
    later.join(patience(30))
    fresh = ArtefactStore(root=tmp_path / "fresh", raw=store.raw)
    register(fresh, DATASET)
    run(fresh, "b00001")
    assert artefacts_of(store, "a") == artefacts_of(fresh, "a")


def test_images_are_those_registered_when_the_lock_is_there_and_not_when_the_run_began_to_wait(made, monkeypatch):
    blocked = threading.Thread(target=run, args=(made, "b00001"))
    with made.lock("lane.b00001.preprocess"):
        waits = lock_requests(monkeypatch, blocked, "lane.b00001.preprocess")
        blocked.start()
        assert waits.wait(patience(30))
        (made.raw / "lane" / "a.png").unlink()
        register(made, DATASET)
        assert artefacts_of(made, "a"), "it began before it had the lock"
    blocked.join(patience(30))
    assert artefacts_of(made, "a") == {}
