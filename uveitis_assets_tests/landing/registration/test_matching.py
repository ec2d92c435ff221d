"""What can happen to a registered file: touched, renamed, changed, unreadable, gone, back again."""

import os
import random

import pytest
from blake3 import blake3

from uveitis_assets.landing.ledger import read_ledger, registered_images
from uveitis_assets.landing.registration import register
from uveitis_assets_tests.landing.landing_samples import jpeg, land, lane, later, live


def test_a_touched_file_with_the_same_content_is_unchanged(store):
    path = land(store, "a.jpg")
    register(store, lane())
    later(path)
    report = register(store, lane())
    assert (report.n_unchanged, report.changed, report.touched_batches) == (1, (), ())
    assert live(store)["a.jpg"].mtime_ns == path.stat().st_mtime_ns


def test_a_renamed_file_keeps_id_batch_and_patient(store):
    path = land(store, "old name.jpg")
    register(store, lane())
    (store.raw / "ds" / "sub").mkdir()
    path.rename(store.raw / "ds" / "sub" / "new.jpg")
    report = register(store, lane())
    assert (report.renamed, report.new, report.gone) == (("lane::old name",), (), ())
    assert (report.new_batches, report.touched_batches) == ((), ("b00001",))
    entry = live(store)["sub/new.jpg"]
    assert (entry.image_id, entry.batch, entry.patient) == ("lane::old name", "b00001", "old name")
    assert register(store, lane()).n_unchanged == 1
    assert live(store)["sub/new.jpg"].patient == "old name"


def test_a_name_that_states_the_patient_moves_the_image_to_the_new_patient(store):
    path = land(store, "train/10_left.jpeg")
    register(store, lane("eyepacs"))
    path.rename(path.with_name("11_left.jpeg"))
    report = register(store, lane("eyepacs"))
    assert report.renamed == ("lane::10_left",)
    assert live(store)["train/11_left.jpeg"].patient == "11"


def test_swapped_files_are_two_changes(store):
    one, two = land(store, "1.jpg"), land(store, "2.jpg")
    register(store, lane())
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second + b" ")
    two.write_bytes(first + b" ")
    assert register(store, lane()).changed == ("lane::1", "lane::2")


def test_a_changed_file_keeps_its_id_in_a_new_batch(store):
    path = land(store, "a.jpg")
    land(store, "b.jpg")
    register(store, lane())
    path.write_bytes(jpeg(99))
    report = register(store, lane())
    assert (report.changed, report.new) == (("lane::a",), ())
    assert (report.new_batches, report.touched_batches) == (("b00002",), ("b00001",))
    assert [image.image_id for image in registered_images(store, lane(), "b00001")] == ["lane::b"]
    assert [image.image_id for image in registered_images(store, lane(), "b00002")] == ["lane::a"]
    assert [entry.state for entry in read_ledger(store, "lane")] == ["superseded", "live", "live"]
    path.write_bytes(jpeg(98))
    assert register(store, lane()).new_batches == ("b00003",)


def test_an_overwrite_with_equal_size_and_modification_time_is_noticed(store):
    path = land(store, "a.jpg")
    state = path.stat()
    register(store, lane())
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert register(store, lane()).changed == ("lane::a",)


def test_a_vanished_file_is_gone_and_comes_back(store):
    path = land(store, "a.jpg")
    land(store, "b.jpg")
    register(store, lane())
    data = path.read_bytes()
    path.unlink()
    report = register(store, lane())
    assert (report.gone, report.touched_batches, report.n_images) == (("lane::a",), ("b00001",), 1)
    assert [image.image_id for image in registered_images(store, lane(), "b00001")] == ["lane::b"]
    assert register(store, lane()).gone == ()
    path.write_bytes(data)
    report = register(store, lane())
    assert (report.returned, report.new, report.touched_batches) == (("lane::a",), (), ("b00001",))
    assert live(store)["a.jpg"].batch == "b00001"


def test_a_returned_file_whose_id_was_given_away_gets_another(store):
    path = land(store, "x/a.jpg", jpeg(1))
    register(store, lane())
    path.unlink()
    register(store, lane())
    land(store, "y/a.jpg", jpeg(2))
    assert register(store, lane()).new == ("lane::a",)
    land(store, "x/a.jpg", jpeg(1))
    register(store, lane())
    ids = {path: entry.image_id for path, entry in live(store).items()}
    assert ids["y/a.jpg"] == "lane::a"
    assert ids["x/a.jpg"].startswith("lane::a~")


def test_an_unmounted_folder_takes_nothing_away(store):
    land(store, "a.jpg")
    register(store, lane())
    (store.raw / "ds").rename(store.raw / "elsewhere")
    report = register(store, lane())
    assert (report.gone, report.n_images) == ((), 1)
    assert [problem.reason for problem in report.problems][:1] == ["missing_folder"]


def test_an_empty_landing_folder_takes_no_image_away(store):
    path = land(store, "0.jpg")
    register(store, lane())
    content = path.read_bytes()
    path.unlink()
    report = register(store, lane())
    assert report.gone == ()
    assert "no_images" in {problem.reason for problem in report.problems}
    path.write_bytes(content)
    assert register(store, lane()).n_unchanged == 1


def test_one_of_two_copies_renamed_is_recognised(store):
    land(store, "a.jpg", jpeg(5))
    second = land(store, "b.jpg", jpeg(5))
    register(store, lane())
    second.rename(second.with_name("c.jpg"))
    report = register(store, lane())
    assert (report.renamed, report.gone, report.new) == (("lane::b",), (), ())


def test_a_broken_link_that_is_repaired_fills_its_entry(store):
    link = store.raw / "ds" / "link.jpg"
    link.parent.mkdir()
    link.symlink_to("target.jpeg.later")
    assert register(store, lane()).quarantined == {"lane::link": "broken_symlink"}
    (store.raw / "ds" / "target.jpeg.later").write_bytes(jpeg(1))
    report = register(store, lane())
    assert (report.changed, report.quarantined) == (("lane::link",), {})
    assert (report.new_batches, report.touched_batches) == ((), ("b00001",))
    assert live(store)["link.jpg"].content_hash == blake3(jpeg(1)).hexdigest()


def test_a_file_that_becomes_unreadable_keeps_what_is_known_and_recovers(store):
    path = land(store, "a.jpg", jpeg(1))
    register(store, lane())
    path.unlink()
    path.symlink_to("nowhere")
    report = register(store, lane())
    assert (report.quarantined, report.touched_batches) == ({"lane::a": "broken_symlink"}, ("b00001",))
    assert live(store)["a.jpg"].content_hash == blake3(jpeg(1)).hexdigest()
    path.unlink()
    path.write_bytes(jpeg(1))
    report = register(store, lane())
    assert (report.quarantined, report.touched_batches) == ({}, ("b00001",))


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_keep_the_ledger_consistent(store, seed):
    """Random landing, removing, renaming, copying and changing: what must hold after every registration."""
    generator = random.Random(seed)
    folder = store.raw / "ds"
    folder.mkdir()
    members = {}
    for step in range(12):
        for _ in range(generator.randint(1, 5)):
            files = sorted(folder.glob("*.jpg"))
            action = generator.choice(["land", "land", "remove", "rename", "copy", "change"])
            fresh = folder / f"{generator.randrange(10**6):06d}.jpg"
            if action == "land" or not files:
                fresh.write_bytes(jpeg(generator.randrange(10**6)))
            elif action == "remove":
                generator.choice(files).unlink()
            elif action == "rename":
                generator.choice(files).rename(fresh)
            elif action == "copy":
                fresh.write_bytes(generator.choice(files).read_bytes())
            else:
                generator.choice(files).write_bytes(jpeg(generator.randrange(10**6)))
        before = {entry.image_id: entry.batch for entry in live(store).values()}
        report = register(store, lane(batch_size=2))
        entries = live(store)
        assert {path: entry.content_hash for path, entry in entries.items()} == {
            file.name: blake3(file.read_bytes()).hexdigest() for file in folder.glob("*.jpg")
        }, step
        ids = [entry.image_id for entry in entries.values()]
        assert len(set(ids)) == len(ids)
        # Members of a batch never come from elsewhere: an image in an old batch was in it before.
        for entry in read_ledger(store, "lane"):
            members.setdefault(entry.batch, set())
            if entry.batch not in report.new_batches:
                assert (entry.image_id, entry.content_hash) in members[entry.batch]
            members[entry.batch].add((entry.image_id, entry.content_hash))
        assert all(len(found) <= 2 for found in members.values())
        changed_batches = {batch for image_id, batch in before.items() if image_id not in ids}
        assert changed_batches <= set(report.touched_batches)
        first = {}
        for entry in read_ledger(store, "lane"):
            first.setdefault(entry.content_hash, entry.patient)
        assert all(entry.split_patient == first[entry.content_hash] for entry in entries.values())
        assert register(store, lane(batch_size=2)).touched_batches == ()
