"""Which files an import reads, and what the numbers of their classes mean."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from uveitis_assets.labels.importing.foreign import ForeignFileError
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.labels.importing.lanes import HEIGHT, WIDTH, land, refusals, run

YOLO: dict[str, Any] = {"format": "yolo", "units": "share"}
ROW = "3 0.5 0.5 0.1 0.1\n"


def names_file(store: ArtefactStore, text: str, name: str = "obj.names") -> Path:
    path = store.root / name
    path.write_text(text)
    return path


def class_written(store: ArtefactStore, number: int, names: Path, **options: Any) -> str:
    """Category number of the lane that a class number of the files becomes."""
    report = run(store, {"a.txt": f"{number} 0.5 0.5 0.1 0.1\n"}, names=names, replace=True, **YOLO, **options)
    assert report.refusals == []
    return (store.raw / "uwf-700/Labels/Uveitis/a.txt").read_text().split()[0]


@pytest.mark.parametrize("blank", ["", "   ", "\t"])
@pytest.mark.parametrize(("names", "line"), [("{}\nhyalite\nvascularite", 1), ("hyalite\n{}\nvascularite\n", 2)])
def test_a_blank_line_among_the_names_of_classes_is_refused_with_its_line(
    store: ArtefactStore, names: str, line: int, blank: str
) -> None:
    land(store, "a.jpg")
    names_of_classes = names_file(store, names.format(blank))
    with pytest.raises(ForeignFileError, match=rf"obj\.names:{line}: expected the name of a class, found none"):
        run(store, {"a.txt": ROW}, names=names_of_classes, first_class=0, **YOLO)


@pytest.mark.parametrize(
    "names", ["hyalite\nvascularite", "\ufeffhyalite\r\nvascularite\r\n", "hyalite\nvascularite\n\n\n"]
)
@pytest.mark.parametrize("first", [0, 1])
def test_names_of_classes_count_from_the_stated_first_class(store: ArtefactStore, names: str, first: int) -> None:
    land(store, "a.jpg")
    assert class_written(store, first + 1, names_file(store, names), first_class=first) == "4"


@pytest.mark.parametrize(
    ("text", "first", "number"),
    [
        ("names: [hyalite, vascularite]", 0, 1),
        ("names: [hyalite, vascularite]", 1, 2),
        ("names: {0: hyalite, 1: vascularite}", None, 1),
        ("names: {1: hyalite, 2: vascularite}", None, 2),
        ("names: {1: hyalite, 2: vascularite}", 1, 2),
        ("names:\n  0: hyalite\n  1: vascularite\n", 0, 1),
    ],
)
def test_names_of_a_data_yaml_have_their_numbers(
    store: ArtefactStore, text: str, first: int | None, number: int
) -> None:
    land(store, "a.jpg")
    assert class_written(store, number, names_file(store, text, "data.yaml"), first_class=first) == "4"


@pytest.mark.parametrize(
    ("text", "first", "message"),
    [
        ("names: {0: hyalite, 1: vascularite}", 1, "--first-class 1: .*data.yaml says that the first class is 0"),
        ("names: {1: hyalite, 2: vascularite}", 0, "--first-class 0: .*data.yaml says that the first class is 1"),
        ("names: [hyalite, vascularite]", None, "--first-class: expected 0 or 1 for the names of .*data.yaml"),
        ("names: [hyalite, ~, vascularite]", 0, "data.yaml: names: entry 2: expected the name of a class"),
        ("names: {0: hyalite, 1: ''}", None, "data.yaml: names: 1: expected the name of a class"),
        ("names: {}", 0, "data.yaml: expected a list of names"),
        ("names: []", 0, "data.yaml: expected the names of classes, found none"),
        ("nc: 3", 0, "data.yaml: expected a list of names"),
        ("names: [", 0, "data.yaml: expected the names of classes, found while parsing"),
    ],
)
def test_names_that_say_no_certain_number_are_refused(
    store: ArtefactStore, text: str, first: int | None, message: str
) -> None:
    land(store, "a.jpg")
    with pytest.raises(ForeignFileError, match=message):
        run(store, {"a.txt": ROW}, names=names_file(store, text, "data.yaml"), first_class=first, **YOLO)


@pytest.mark.parametrize("name", ["a.labels", "a.text", "a"])
def test_a_file_given_directly_is_read_whatever_its_extension(store: ArtefactStore, name: str) -> None:
    land(store, "a.jpg")
    assert run(store, {name: ROW}, only=name, first_class=0, **YOLO).written == ["Labels/Uveitis/a.txt"]


def test_a_coco_file_without_the_usual_extension_is_read(store: ArtefactStore) -> None:
    land(store, "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [320, 240, 100, 72]}],
        "categories": [{"id": 3, "name": "vascularite"}],
    }
    report = run(store, {"instances.coco": json.dumps(content)}, only="instances.coco", format="coco")
    assert (report.n_lesions, report.written) == (1, ["Labels/Uveitis/a.txt"])


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('{"images": [], "annotations": [], "categories": []}', {"format": "coco"}, "expected coco labels of images"),
        ("[]", {"format": "label-studio"}, "expected label-studio labels of images, found none"),
        ("<annotations/>", {"format": "cvat"}, "expected cvat labels of images, found none"),
        ("hyalite\n", {**YOLO, "first_class": 0}, "expected yolo labels of images, found none"),
    ],
)
def test_an_import_that_finds_no_image_fails(
    store: ArtefactStore, content: str, options: dict[str, Any], message: str
) -> None:
    land(store, "a.jpg")
    with pytest.raises(ForeignFileError, match=message):
        run(store, {"classes.txt": content}, only="classes.txt", **options)


@pytest.mark.parametrize("stem", ["classes", "labels", "train", "val", "test"])
def test_lists_beside_the_labels_are_no_labels_but_images_may_have_their_names(store: ArtefactStore, stem: str) -> None:
    land(store, "a.jpg", f"{stem}.jpg")
    lists = {"classes": "hyalite\nvascularite\n", "labels": "hyalite\n"}
    content = lists.get(stem, f"data/{stem}/a.jpg\ndata/{stem}/photograph 1 2 3.jpg\n")
    report = run(store, {"a.txt": ROW, f"{stem}.txt": content}, first_class=0, **YOLO)
    assert (report.written, report.refusals) == (["Labels/Uveitis/a.txt"], [])
    report = run(store, {"a.txt": ROW, f"{stem}.txt": ROW}, first_class=0, replace=True, **YOLO)
    assert report.written == ["Labels/Uveitis/a.txt", f"Labels/Uveitis/{stem}.txt"]


def test_the_file_with_the_names_is_no_label_file(store: ArtefactStore) -> None:
    land(store, "a.jpg", "b.jpg")
    files = {"a.txt": "1 0.5 0.5 0.1 0.1", "b.txt": "hyalite\nvascularite\n"}
    report = run(store, files, names=store.root / "foreign" / "b.txt", first_class=0, **YOLO)
    assert (report.written, report.refusals) == (["Labels/Uveitis/a.txt"], [])
    with pytest.raises(ForeignFileError, match="expected yolo files"):
        run(store, files, only="b.txt", names=store.root / "foreign" / "b.txt", first_class=0, **YOLO)


def test_files_are_read_one_after_the_other(store: ArtefactStore) -> None:
    """LabelMe writes the whole photograph into its file."""
    names = [f"{number}.jpg" for number in range(6)]
    land(store, *names)
    photograph = "A" * 8_000_000
    shape = {"label": "vascularite", "points": [(100, 100), (220, 100), (100, 180)], "shape_type": "polygon"}
    files = {
        f"{name}.json": json.dumps({"imagePath": name, "shapes": [shape], "imageData": photograph}) for name in names
    }
    run(store, files, format="labelme", dry_run=True)
    tracemalloc.start()
    try:
        report = run(store, {}, format="labelme")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (report.n_images, refusals(report)) == (6, [])
    assert peak < 40_000_000  # 48 MB of files


@pytest.mark.parametrize(
    "document",
    [
        '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>',
        '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><annotations>&b;</annotations>',
        '<!DOCTYPE annotations SYSTEM "http://example.org/a.dtd"><annotations/>',
    ],
)
def test_xml_with_a_document_type_is_refused(store: ArtefactStore, document: str) -> None:
    land(store, "a.jpg")
    with pytest.raises(ForeignFileError, match=r"annotations\.xml:1: found a document type or an entity"):
        run(store, {"annotations.xml": document}, format="cvat")


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.xml", "<annotations><image", {"format": "cvat"}),
        ("a.xml", "<html/>", {"format": "cvat"}),
        ("a.json", "{", {"format": "coco"}),
        ("a.json", "[]", {"format": "coco"}),
        ("a.json", '{"images": 3}', {"format": "coco"}),
        ("a.json", '{"shapes": [3]}', {"format": "labelme"}),
        ("a.json", "{}", {"format": "label-studio"}),
        ("a.txt", b"\xff\xfe3\x00", {**YOLO, "first_class": 0}),
    ],
)
def test_a_file_of_another_format_is_named(
    store: ArtefactStore, name: str, content: str | bytes, options: dict[str, Any]
) -> None:
    land(store, "a.jpg")
    with pytest.raises(ForeignFileError, match=rf"^{name}"):
        run(store, {name: content}, **options)
