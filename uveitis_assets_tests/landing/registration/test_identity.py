"""Image ids: distinct on disk, usable whatever the file name, free of names where those are hidden."""

import os
from unicodedata import normalize

from blake3 import blake3

from uveitis_assets.landing.ledger import read_ledger, registered_images
from uveitis_assets.landing.registration import register
from uveitis_assets_tests.landing.landing_samples import jpeg, land, lane, live


def test_equal_stems_in_different_folders_stay_distinct(store):
    land(store, "Images/DR/001.jpg")
    land(store, "Images/Uveitis/001.jpg")
    land(store, "Labels/DR/001.txt", b"1 0 0 1 0 1 1 0 1\n")
    register(store, lane("uwf700"))
    entries = live(store)
    first, second = entries["Images/DR/001.jpg"], entries["Images/Uveitis/001.jpg"]
    assert first.image_id == "lane::001"
    assert second.image_id.startswith("lane::001~")
    assert len(second.image_id) == len("lane::001~") + 8
    assert (first.label_paths, second.label_paths) == (("Labels/DR/001.txt",), ())
    assert (first.label_format, second.label_format) == ("obb", "none")


def test_ids_differ_on_disk_whatever_case_form_or_separator(store):
    names = ["Eye.jpg", "eye.jpg", "x::y.jpg", "x__y.jpg", normalize("NFD", "é/é.jpg"), normalize("NFC", "ö/é.jpg")]
    for number, name in enumerate(names):
        land(store, name, jpeg(number))
    register(store, lane())
    ids = [entry.image_id for entry in read_ledger(store, "lane")]
    keys = {normalize("NFC", image_id.replace("::", "__")).casefold() for image_id in ids}
    assert len(keys) == len(names)
    assert all(image_id == normalize("NFC", image_id) for image_id in ids)
    register(store, lane())
    assert [entry.image_id for entry in read_ledger(store, "lane")] == ids


def test_long_names_with_spaces_commas_and_line_breaks_get_usable_ids(store):
    land(store, "é" * 120 + ".jpg", jpeg(1))
    land(store, "é" * 119 + "ö.jpg", jpeg(2))
    land(store, "a, b\nc.jpg", jpeg(3))
    register(store, lane())
    ids = [entry.image_id for entry in read_ledger(store, "lane")]
    assert "lane::a, b_c" in ids
    assert len(set(ids)) == 3
    assert all(len(image_id.encode()) < 180 for image_id in ids)


def test_identify_by_content_keeps_names_out_of_the_id(store):
    dataset = lane(image_folder={"identify_by_content": True})
    path = land(store, "Jane Doe.jpg", jpeg(1))
    land(store, "Jane Doe copy.jpg", jpeg(1))
    os.mkfifo(store.raw / "ds" / "John Roe.jpg")
    report = register(store, dataset)
    digest = blake3(jpeg(1)).hexdigest()
    assert len(report.new) == 3
    assert f"lane::img_{digest[:16]}" in report.new
    assert "Doe" not in repr(report)
    assert "Roe" not in repr(report)
    images = registered_images(store, dataset, "b00001")
    assert all(image.name == image.image_id + ".jpg" for image in images)
    path.write_bytes(jpeg(2))
    report = register(store, dataset)
    assert report.new == (f"lane::img_{blake3(jpeg(2)).hexdigest()[:16]}",)
    assert report.touched_batches == ("b00001",)
    assert "Doe" not in repr(report)
