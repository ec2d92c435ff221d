"""Labels of other tools become the lane's own: the same lesions from every format, every refused row with its place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_masks
from shapely import affinity

from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.importing.foreign import ForeignFileError
from uveitis_assets.labels.masks.mask_files import parse_mask
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.labels.importing.lanes import HEIGHT, ORIGINALS, WIDTH, land, refusals, run

SPACE = load_class_map().label_space("obb")
# Upright box of 100 x 72 px, and a triangle; both of class 4, vascularite.
BOX = np.array([(320, 240), (420, 240), (420, 312), (320, 312)], float)
TRIANGLE = np.array([(100, 100), (220, 100), (100, 180)], float)
# The box turned by 30 degrees around its centre, clockwise as one sees it: its upper right corner goes down.
TURNED = shapely.get_coordinates(affinity.rotate(shapely.Polygon(BOX), 30, origin=(370, 276)))[:4]
assert TURNED[1].round(2).tolist() == [431.30, 269.82]


def corners(store: ArtefactStore, stem: str = "a") -> tuple[list[int], NDArray[np.float64]]:
    file = store.raw / "uwf-700" / "Labels" / "Uveitis" / f"{stem}.txt"
    lesions = parse_oriented_boxes(file.read_bytes(), file.name, SPACE, (WIDTH, HEIGHT), edge_tolerance=0.005)
    assert lesions.corners is not None
    return lesions.category_ids.tolist(), lesions.corners


def coco(**annotation: Any) -> str:
    return json.dumps(
        {
            "images": [{"id": 7, "file_name": "some/folder/a.jpg", "width": WIDTH, "height": HEIGHT}],
            "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, **annotation}],
            "categories": [{"id": 3, "name": "vasculitis"}],
        }
    )


def labelme(points: NDArray[np.float64], kind: str) -> str:
    shape = {"label": "vasculitis", "points": points.tolist(), "shape_type": kind}
    size = {"imagePath": "..\\photos\\a.jpg", "imageWidth": WIDTH, "imageHeight": HEIGHT}
    return json.dumps({"version": "5.2.1", "shapes": [shape], **size})


def label_studio(kind: str, **value: Any) -> str:
    result = {
        "type": kind,
        "value": {**value, kind: ["vasculitis"]},
        "original_width": WIDTH,
        "original_height": HEIGHT,
    }
    task = {"id": 5, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"id": 1, "result": [result]}]}
    return json.dumps([task])


def cvat(element: str) -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f'<image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">\n{element}\n</image>\n</annotations>\n'
    )


def points_text(points: NDArray[np.float64]) -> str:
    return ";".join(f"{x},{y}" for x, y in points)


NAMED = {"classes": {"vasculitis": "vascularite"}}
NUMBERED = {"units": "share", "first_class": 0}
SHARES = " ".join(f"{value:.8f}" for value in (BOX / (WIDTH, HEIGHT)).ravel())

BOXES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "coco": ({"all.json": coco(bbox=[320, 240, 100, 72])}, {"format": "coco", **NAMED}),
    "yolo": ({"a.txt": "3 0.4625 0.46 0.125 0.12\n"}, {"format": "yolo", **NUMBERED}),
    "yolo, classes from 1": (
        {"a.txt": "4 0.4625 0.46 0.125 0.12\n"},
        {"format": "yolo", "units": "share", "first_class": 1},
    ),
    "yolo in pixels": (
        {"a.txt": "3 370 276 100 72\n"},
        {"format": "yolo", "units": "pixel", "first_class": 0},
    ),
    "yolo with a confidence": (
        {"a.txt": "3 0.4625 0.46 0.125 0.12 0.8\n4 0.5 0.5 0.1 0.1 0.2\n"},
        {"format": "yolo", "min_confidence": 0.5, **NUMBERED},
    ),
    "yolo, class as float, comment": ({"a.txt": f"# exported\n3.0 {SHARES}\n"}, {"format": "yolo-obb", **NUMBERED}),
    "yolo-obb with a confidence": (
        {"a.txt": f"3 {SHARES} 0.87\n"},
        {"format": "yolo-obb", "min_confidence": 0.0, **NUMBERED},
    ),
    "dota": (
        {"a.txt": "imagesource:GoogleEarth\ngsd:0.1\n320 240 420 240 420 312 320 312 vasculitis 0\n"},
        {"format": "dota", "units": "pixel", **NAMED},
    ),
    "cvat": (
        {"annotations.xml": cvat('<box label="vasculitis" xtl="320" ytl="240" xbr="420" ybr="312"/>')},
        {"format": "cvat", **NAMED},
    ),
    "cvat, turned twice": (
        {"annotations.xml": cvat('<box label="vasculitis" xtl="334" ytl="226" xbr="406" ybr="326" rotation="90"/>')},
        {"format": "cvat", **NAMED},
    ),
    "cvat, turned by 30 degrees, clockwise": (
        {"annotations.xml": cvat('<box label="vasculitis" xtl="320" ytl="240" xbr="420" ybr="312" rotation="30"/>')},
        {"format": "cvat", **NAMED},
    ),
    "label-studio, turned by 30 degrees, clockwise": (
        {
            "t.json": label_studio(
                "rectanglelabels", x=TURNED[0][0] / 8, y=TURNED[0][1] / 6, width=12.5, height=12, rotation=30
            )
        },
        {"format": "label-studio", **NAMED},
    ),
    "labelme": ({"a.json": labelme(BOX[[2, 0]], "rectangle")}, {"format": "labelme", **NAMED}),
    "label-studio": (
        {"tasks.json": label_studio("rectanglelabels", x=40, y=40, width=12.5, height=12, rotation=0)},
        {"format": "label-studio", **NAMED},
    ),
    "label-studio, turned": (
        {"tasks.json": label_studio("rectanglelabels", x=52.5, y=40, width=9, height=100 / 6, rotation=90)},
        {"format": "label-studio", **NAMED},
    ),
}


@pytest.mark.parametrize("name", BOXES)
def test_a_box_of_every_format_is_the_same_box(store: ArtefactStore, name: str) -> None:
    land(store, "a.jpg", "b.jpg")
    files, options = BOXES[name]
    report = run(store, files, **options)
    assert report.written == ["Labels/Uveitis/a.txt"]
    assert (report.n_images, report.n_lesions, report.refusals) == (1, 1, [])
    categories, found = corners(store)
    assert categories == [4]
    expected = TURNED if "30 degrees" in name else BOX
    np.testing.assert_allclose(sorted(found[0].tolist()), sorted(expected.tolist()), atol=1e-4)


def triangle_pixels() -> NDArray[np.bool_]:
    """Pixels whose centre lies in the triangle."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (x > 100) & (y > 100) & ((x - 100) / 120 + (y - 100) / 80 < 1)


def run_lengths(pixels: NDArray[np.bool_], *, compressed: bool) -> dict[str, Any]:
    code = coco_masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
    if compressed:
        return {"size": list(code["size"]), "counts": code["counts"].decode()}
    values = pixels.ravel(order="F")
    changes = np.flatnonzero(np.diff(values, prepend=False))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(changes, prepend=0, append=values.size).tolist()}


def cvat_mask() -> str:
    pixels = triangle_pixels()[100:180, 100:220].ravel()
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    counts = ", ".join(map(str, np.diff(changes, prepend=0, append=pixels.size)))
    return cvat(f'<mask label="vasculitis" rle="{counts}" left="100" top="100" width="120" height="80"/>')


TRIANGLE_SHARES = " ".join(f"{value:.8f}" for value in (TRIANGLE / (WIDTH, HEIGHT)).ravel())
OUTLINES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "coco": ({"all.json": coco(segmentation=[TRIANGLE.ravel().tolist()], bbox=[0, 0, 1, 1])}, {"format": "coco"}),
    "coco, run lengths": (
        {"all.json": coco(segmentation=run_lengths(triangle_pixels(), compressed=False))},
        {"format": "coco"},
    ),
    "coco, compressed run lengths": (
        {"all.json": coco(segmentation=run_lengths(triangle_pixels(), compressed=True))},
        {"format": "coco"},
    ),
    "yolo-seg": ({"a.txt": f"0 {TRIANGLE_SHARES}\n", "data.yaml": "names: {0: vasculitis}\n"}, {"format": "yolo-seg"}),
    "cvat": (
        {"annotations.xml": cvat(f'<polygon label="vasculitis" points="{points_text(TRIANGLE)}"/>')},
        {"format": "cvat"},
    ),
    "cvat mask": ({"annotations.xml": cvat_mask()}, {"format": "cvat"}),
    "labelme": ({"a.json": labelme(TRIANGLE, "polygon")}, {"format": "labelme"}),
    "label-studio": (
        {"tasks.json": label_studio("polygonlabels", points=(TRIANGLE / (WIDTH, HEIGHT) * 100).tolist())},
        {"format": "label-studio"},
    ),
}


def with_names(store: ArtefactStore, options: dict[str, Any]) -> dict[str, Any]:
    yolo = options["format"] == "yolo-seg"
    return options | ({"names": store.root / "foreign" / "data.yaml", "units": "share"} if yolo else {})


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_of_every_format_is_the_same_mask(store: ArtefactStore, name: str) -> None:
    land(store, "a.jpg", "b.jpg", folder=ORIGINALS)
    files, options = OUTLINES[name]
    report = run(store, files, masks=True, **NAMED, **with_names(store, options))
    assert report.written == ["Neovascularization_Masks/a.png"]
    written = store.raw / "fgadr" / "Neovascularization_Masks" / "a.png"
    reading = parse_mask(written.read_bytes(), "a.png", (WIDTH, HEIGHT))
    np.testing.assert_array_equal(reading.marked, triangle_pixels())
    assert not reading.findings


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_of_every_format_is_a_rectangle_in_a_lane_of_boxes(store: ArtefactStore, name: str) -> None:
    land(store, "a.jpg")
    files, options = OUTLINES[name]
    run(store, files, **NAMED, **with_names(store, options))
    _, found = corners(store)
    sides = sorted(np.linalg.norm(np.diff(found[0][:3], axis=0), axis=1))
    # The smallest rectangle of a right triangle has its area twice.
    assert sides[0] * sides[1] == pytest.approx(120 * 80, rel=0.05)


def test_images_without_lesions_get_empty_labels_and_classes_left_out_are_counted(store: ArtefactStore) -> None:
    land(store, "a.jpg", "b.jpg")
    files = {"a.txt": "", "b.txt": "3 0.5 0.5 0.1 0.1\n7 0.2 0.2 0.1 0.1\n"}
    report = run(store, files, format="yolo", classes={"7": ""}, **NUMBERED)
    assert (report.n_images, report.n_lesions, report.n_left_out) == (2, 1, 1)
    assert (store.raw / "uwf-700/Labels/Uveitis/a.txt").read_bytes() == b""


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a box for a polygon": ("3 0.5 0.5 0.1 0.1", {"format": "yolo-seg"}, "a.txt:2: found 5 values, expected a class"),
    "an oriented box for a box": (f"3 {SHARES}", {"format": "yolo"}, "a.txt:2: found 9 values, expected 5 values"),
    "pixels for shares": ("3 370 276 100 72", {"format": "yolo"}, "a.txt:2: found the coordinate 420"),
    "a class that is none": ("20 0.5 0.5 0.1 0.1", {"format": "yolo"}, "a.txt:2: found class 20, which is 21"),
    "a prediction": ("3 0.5 0.5 0.1 0.1 0.9", {"format": "yolo"}, "a.txt:2: found a confidence (0.9)"),
    "a word": ("3 0.5 x 0.1 0.1", {"format": "yolo"}, "a.txt:2: found 'x', expected a number"),
    "not finite": ("3 0.5 nan 0.1 0.1", {"format": "yolo"}, "a.txt:2: found nan, expected a finite number"),
    "a line": ("3 0.5 0.5 0.0 0.1", {"format": "yolo"}, "a.txt:2: found a box without area"),
    "outside": ("3 0.98 0.5 0.1 0.1", {"format": "yolo"}, "a.txt:2: found the coordinate 1.03"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_row_is_named_and_its_image_gets_no_label(store: ArtefactStore, name: str) -> None:
    land(store, "a.jpg", "b.jpg")
    row, options, message = REFUSED[name]
    good = {"yolo": "3 0.5 0.5 0.1 0.1", "yolo-seg": f"3 {TRIANGLE_SHARES}"}[options["format"]]
    report = run(store, {"a.txt": f"{good}\n{row}\n", "b.txt": f"{good}\n"}, **options, **NUMBERED)
    (refusal,) = report.refusals
    assert f"{refusal.place}: {refusal.reason}".startswith(message)
    assert report.images_left_out == ["Images/Uveitis/a.jpg"]
    assert report.written == ["Labels/Uveitis/b.txt"]
    assert not (store.raw / "uwf-700/Labels/Uveitis/a.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "yolo", "first_class": 0}, "--units: expected pixel or share"),
        ({"format": "yolo", "units": "share"}, "--first-class: expected 0 or 1"),
        ({"format": "dota"}, "--units: expected pixel or share"),
        ({"format": "coco", "units": "pixel"}, "coco files define their units"),
        ({"format": "cvat", "first_class": 0}, "cvat files hold class names"),
        ({"format": "cvat"}, r"expected cvat files \(\*.xml\), found none"),
        ({"format": "dota", "units": "pixel", "classes": {"x": "y"}}, "--class x=y: expected a category or a label"),
    ],
)
def test_what_the_format_leaves_open_has_to_be_stated(
    store: ArtefactStore, options: dict[str, Any], message: str
) -> None:
    land(store, "a.jpg")
    with pytest.raises(ForeignFileError, match=message):
        run(store, {"a.txt": "3 0.5 0.5 0.1 0.1\n", "a.json": "{}"}, **options)


def test_classes_that_nothing_maps_are_refused_with_what_to_add(store: ArtefactStore) -> None:
    land(store, "a.jpg")
    report = run(store, {"all.json": coco(bbox=[320, 240, 100, 72])}, format="coco")
    assert refusals(report) == [
        "all.json: annotation 1: found class 'vasculitis', which nothing maps; add --class 'vasculitis=<class of the "
        "lane>'"
    ]
    assert report.written == []


def test_a_category_of_two_mask_folders_has_to_be_named_by_its_folder(store: ArtefactStore) -> None:
    land(store, "a.jpg", folder=ORIGINALS)
    file = {"a.json": labelme(TRIANGLE, "polygon")}
    with pytest.raises(ForeignFileError, match="found HardExudate_Masks, SoftExudate_Masks; name the label class"):
        run(store, file, masks=True, format="labelme", classes={"vasculitis": "exudats"})
    report = run(store, file, masks=True, format="labelme", classes={"vasculitis": "SoftExudate_Masks"})
    assert report.written == ["SoftExudate_Masks/a.png"]


def test_a_box_is_no_mask(store: ArtefactStore) -> None:
    land(store, "a.jpg", folder=ORIGINALS)
    report = run(store, {"a.json": labelme(BOX[[0, 2]], "rectangle")}, masks=True, format="labelme", **NAMED)
    assert "found a box, expected an outline" in report.refusals[0].reason
    assert report.written == []


def test_label_files_that_exist_are_replaced_only_when_asked_and_a_dry_run_writes_nothing(store: ArtefactStore) -> None:
    land(store, "a.jpg")
    options: dict[str, Any] = {"format": "yolo", **NUMBERED}
    file = store.raw / "uwf-700/Labels/Uveitis/a.txt"
    assert run(store, {"a.txt": ""}, dry_run=True, **options).written == ["Labels/Uveitis/a.txt"]
    assert not file.exists()
    run(store, {"a.txt": ""}, **options)
    (refused,) = refusals(run(store, {"a.txt": "3 0.5 0.5 0.1 0.1"}, **options))
    assert "found label files of Images/Uveitis/a.jpg already: Labels/Uveitis/a.txt; add --replace" in refused
    assert file.read_bytes() == b""
    run(store, {"a.txt": "3 0.5 0.5 0.1 0.1"}, replace=True, **options)
    assert file.read_text().startswith("4 0.45")


FOREIGN_ROWS: dict[str, dict[str, Any]] = {
    "five_col": {"format": "yolo", "units": "share"},
    "conf_col": {"format": "yolo-obb", "units": "share", "min_confidence": 0.5},
    "seg_polygon": {"format": "yolo-seg", "units": "share"},
    "float_class": {"format": "yolo-obb", "units": "share"},
    "comment_line": {"format": "yolo-obb", "units": "share"},
    "px_units": {"format": "yolo-obb", "units": "pixel"},
}


@pytest.mark.parametrize("name", FOREIGN_ROWS)
def test_the_given_foreign_rows_are_imported_as_stated(store: ArtefactStore, cases: Path, name: str) -> None:
    land(store, f"{name}.jpg")
    folder = cases / "obb_foreign_rows" / "uwf-700"
    with Image.open(folder / "Images" / "Uveitis" / f"{name}.jpg") as image:
        size = image.size
    assert size == (WIDTH, HEIGHT)
    text = (folder / "Labels" / "Uveitis" / f"{name}.txt").read_bytes()
    report = run(store, {f"{name}.txt": text}, first_class=1, **FOREIGN_ROWS[name])
    assert report.refusals == []
    categories, found = corners(store, name)
    assert categories == ([4, 5] if name in {"float_class", "comment_line"} else [4])
    x0, y0 = found[0].min(axis=0)
    assert (round(x0), round(y0)) in {(320, 240), (318, 240), (318, 239)}
