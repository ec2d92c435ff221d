"""Which image a foreign label goes to, and what becomes of the labels that the image has already."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uveitis_assets.labels.importing.foreign import ForeignFileError
from uveitis_assets.landing.layouts import scan_landing_folder
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.labels.importing.lanes import FGADR, HEIGHT, ORIGINALS, UWF, WIDTH, land, refusals, run

YOLO: dict[str, Any] = {"format": "yolo", "units": "share", "first_class": 0}
ROW = "3 0.5 0.5 0.1 0.1\n"
NAMED: dict[str, Any] = {"format": "labelme", "classes": {"vasculitis": "vascularite"}}


def labelme(image: str, label: str = "vasculitis", **content: Any) -> str:
    shape = {"label": label, "points": [(100, 100), (220, 100), (100, 180)], "shape_type": "polygon"}
    return json.dumps({"imagePath": image, "shapes": [shape], **content})


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_labels_of_images_that_differ_in_extension_only_are_refused_with_both_names(
    store: ArtefactStore, name: str, *, masks: bool
) -> None:
    folder = ORIGINALS if masks else "uwf-700/Images/Uveitis"
    land(store, "x.jpg", "x.png", "y.jpg", folder=folder)
    report = run(store, {"a.json": labelme(name), "b.json": labelme("y.jpg")}, masks=masks, **NAMED)
    (refusal,) = refusals(report)
    assert refusal.startswith("a.json: found the images ")
    assert "x.jpg and " in refusal
    assert "x.png, whose labels would have one name" in refusal
    assert [Path(path).stem for path in report.written] == ["y"]


def test_a_name_without_extension_that_two_images_have_is_refused_with_both(store: ArtefactStore) -> None:
    land(store, "x.jpg", "x.png")
    (refusal,) = refusals(run(store, {"x.txt": ROW}, **YOLO))
    assert "found 2 images that 'x' can mean: Images/Uveitis/x.jpg, Images/Uveitis/x.png" in refusal


def test_names_that_no_image_or_several_images_have_are_refused(store: ArtefactStore) -> None:
    land(store, "a.jpg")
    land(store, "a.jpg", "c.png", folder="uwf-700/Images/Behcet")
    files = {"a.txt": ROW, "d.txt": ROW, "Behcet/a.txt": ROW, "c.txt": ROW}
    report = run(store, files, **YOLO)
    reasons = {refusal.image: refusal.reason for refusal in report.refusals}
    assert "found 2 images that 'a' can mean" in reasons["a"]
    assert "found no image 'd'" in reasons["d"]
    assert report.written == ["Labels/Behcet/a.txt", "Labels/Behcet/c.txt"]


def test_a_name_whose_folder_and_extension_speak_for_two_images_is_refused_with_both(store: ArtefactStore) -> None:
    land(store, "a.png", "b.png")
    land(store, "a.jpg", "b.jpg", folder="uwf-700/Images/Behcet")
    files = {"1.json": labelme("Uveitis/a.jpg"), "2.json": labelme("scans/b.jpg")}
    report = run(store, files, **NAMED)
    (refusal,) = refusals(report)
    assert "can mean: Images/Behcet/a.jpg, Images/Uveitis/a.png" in refusal
    assert report.written == ["Labels/Behcet/b.txt"]


@pytest.mark.parametrize(
    ("files", "places"),
    [
        ({"one/a.txt": ROW, "two/a.txt": ROW}, "one/a.txt (one/a) and two/a.txt (two/a)"),
        ({"a.txt": ROW, "a.jpg.txt": ""}, "a.txt (a) and a.jpg.txt (a.jpg)"),
    ],
)
def test_several_files_that_claim_one_image_are_refused_with_all_names(
    store: ArtefactStore, files: dict[str, str], places: str
) -> None:
    land(store, "a.jpg", "b.jpg")
    report = run(store, {**files, "b.txt": ROW}, **YOLO)
    (refusal,) = refusals(report)
    assert f"found labels of Images/Uveitis/a.jpg in {places}; keep one" in refusal
    assert report.images_left_out == ["Images/Uveitis/a.jpg"]
    assert report.written == ["Labels/Uveitis/b.txt"]


def test_one_file_that_lists_an_image_twice_is_refused(store: ArtefactStore) -> None:
    land(store, "a.jpg")
    entry = {"width": WIDTH, "height": HEIGHT}
    images = [{"id": 1, "file_name": "train/a.jpg", **entry}, {"id": 2, "file_name": "val/a.jpg", **entry}]
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [320, 240, 100, 72]}
    content = {"images": images, "annotations": [box], "categories": [{"id": 3, "name": "vascularite"}]}
    report = run(store, {"all.json": json.dumps(content)}, format="coco")
    (refusal,) = refusals(report)
    assert "in all.json: image 1 (train/a.jpg) and all.json: image 2 (val/a.jpg)" in refusal
    assert report.written == []


def test_a_row_refused_under_one_name_of_an_image_leaves_the_whole_image_out(store: ArtefactStore) -> None:
    land(store, "a.jpg", folder=ORIGINALS)
    point = {"label": "vasculitis", "points": [(5, 5)], "shape_type": "point"}
    good = json.loads(labelme("a.jpg"))["shapes"][0]
    report = run(store, {"a.json": labelme("a.jpg", shapes=[good, point])}, masks=True, **NAMED)
    assert refusals(report)[0].startswith("a.json: shape 2: found the shape point")
    assert (report.written, report.images_left_out) == ([], ["Original_Images/a.jpg"])
    assert not (store.raw / "fgadr" / "Neovascularization_Masks").exists()


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[:20, :20] = 255
    Image.fromarray(pixels).save(path)


def test_replaced_masks_leave_none_of_other_classes_or_extensions(store: ArtefactStore) -> None:
    land(store, "a.jpg", "b.jpg", folder=ORIGINALS)
    lane = store.raw / "fgadr"
    earlier = ["Neovascularization_Masks/a.tif", "Neovascularization_Masks/a.bmp", "HardExudate_Masks/a.jpg"]
    for name in (*earlier, "HardExudate_Masks/b.jpg"):
        mask(lane / name)
    report = run(store, {"a.json": labelme("a.jpg")}, masks=True, replace=True, **NAMED)
    assert report.written == ["Neovascularization_Masks/a.png"]
    assert sorted(report.removed) == sorted(earlier)
    found = {sample.relative_path: sample.label_paths for sample in scan_landing_folder(FGADR, store).samples}
    assert found == {
        "Original_Images/a.jpg": ("Neovascularization_Masks/a.png",),
        "Original_Images/b.jpg": ("HardExudate_Masks/b.jpg",),
    }


@pytest.mark.parametrize("names", [("a.TXT",), ("a.TXT", "a.Txt")])
def test_replaced_boxes_leave_no_second_label_file(store: ArtefactStore, names: tuple[str, ...]) -> None:
    land(store, "a.jpg")
    folder = store.raw / "uwf-700/Labels/Uveitis"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("")
    (refusal,) = refusals(run(store, {"a.txt": ROW}, **YOLO))
    assert all(f"Labels/Uveitis/{name}" in refusal for name in names)
    assert run(store, {"a.txt": ROW}, replace=True, dry_run=True, **YOLO).removed == [
        f"Labels/Uveitis/{name}" for name in names
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    run(store, {"a.txt": ROW}, replace=True, **YOLO)
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    assert scan_landing_folder(UWF, store).samples[0].label_paths == ("Labels/Uveitis/a.txt",)


def test_masks_of_another_class_are_added_to_those_that_an_image_has(store: ArtefactStore) -> None:
    land(store, "a.jpg", folder=ORIGINALS)
    lane = store.raw / "fgadr"
    mask(lane / "HardExudate_Masks/a.png")
    before = (lane / "HardExudate_Masks/a.png").read_bytes()
    report = run(store, {"a.json": labelme("a.jpg")}, masks=True, **NAMED)
    assert (report.written, report.removed, report.refusals) == (["Neovascularization_Masks/a.png"], [], [])
    assert (lane / "HardExudate_Masks/a.png").read_bytes() == before


def test_a_label_folder_that_leads_out_of_the_raw_folder_is_refused_by_name(store: ArtefactStore) -> None:
    land(store, "a.jpg")
    land(store, "b.jpg", folder="uwf-700/Images/Behcet")
    outside = store.root / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("kept")
    (store.raw / "uwf-700/Labels").mkdir()
    (store.raw / "uwf-700/Labels/Uveitis").symlink_to(outside)
    report = run(store, {"a.txt": ROW, "b.txt": ROW}, replace=True, **YOLO)
    (refusal,) = refusals(report)
    assert refusal.startswith("a.txt: Labels/Uveitis/a.txt: ")
    assert "expected a path below" in refusal
    assert report.written == ["Labels/Behcet/b.txt"]
    assert (outside / "a.txt").read_text() == "kept"


def test_a_label_that_is_a_link_is_replaced_itself_and_not_its_target(store: ArtefactStore) -> None:
    land(store, "a.jpg")
    outside = store.root / "outside.txt"
    outside.write_text("kept")
    folder = store.raw / "uwf-700/Labels/Uveitis"
    folder.mkdir(parents=True)
    (folder / "a.txt").symlink_to(outside)
    assert "add --replace" in refusals(run(store, {"a.txt": ROW}, **YOLO))[0]
    run(store, {"a.txt": ROW}, replace=True, **YOLO)
    assert outside.read_text() == "kept"
    assert (folder / "a.txt").read_text().startswith("4 ")


def test_a_lane_outside_the_raw_folder_is_refused_by_name(store: ArtefactStore, tmp_path: Path) -> None:
    store.raw.mkdir(parents=True, exist_ok=True)
    (store.raw / "uwf-700").symlink_to(tmp_path)
    with pytest.raises(ForeignFileError, match="uwf700: uwf-700: expected a path below"):
        run(store, {"a.txt": ROW}, **YOLO)


SIZES = [True, "800", "wide", float("nan"), float("inf"), 800.5, -800, 0, 799, None, [800]]


@pytest.mark.parametrize("width", SIZES)
def test_a_stated_size_that_is_not_the_images_is_refused(store: ArtefactStore, width: object) -> None:
    land(store, "a.jpg", "b.jpg")
    files = {"a.json": labelme("a.jpg", imageWidth=width, imageHeight=HEIGHT), "b.json": labelme("b.jpg")}
    report = run(store, files, **NAMED)
    (refusal,) = refusals(report)
    assert refusal.startswith("a.json: found ")
    assert report.written == ["Labels/Uveitis/b.txt"]
