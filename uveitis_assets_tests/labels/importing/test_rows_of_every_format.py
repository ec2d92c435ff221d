"""Rows of every format as tools write them, and as nobody should: against shapely and pycocotools, or refused."""

import base64
import io
import json
import math
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely import affinity

from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.importing.foreign import ForeignFileError
from uveitis_assets.labels.masks.mask_files import parse_mask
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.labels.importing.documents import OUTLINE, coco, cvat, label_studio, labelme, rectangle
from uveitis_assets_tests.labels.importing.lanes import HEIGHT, ORIGINALS, WIDTH, land, refusals, run

SPACE = load_class_map().label_space("obb")
YOLO: dict[str, Any] = {"units": "pixel", "first_class": 0}
NAMED: dict[str, Any] = {"classes": {"vessel": "vascularite"}}


def polygons(store: ArtefactStore, stem: str = "a") -> list[shapely.Polygon]:
    """Boxes written for an image, as a lane of boxes reads them."""
    data = (store.raw / "uwf-700/Labels/Uveitis" / f"{stem}.txt").read_bytes()
    corners = parse_oriented_boxes(data, stem, SPACE, (WIDTH, HEIGHT), edge_tolerance=0.005).corners
    return [] if corners is None else [shapely.Polygon(points) for points in corners]


def same(found: shapely.Polygon, expected: shapely.Polygon) -> bool:
    return found.symmetric_difference(expected).area < 1e-2


def mask_of(store: ArtefactStore, stem: str = "a") -> NDArray[np.bool_]:
    data = (store.raw / "fgadr/Neovascularization_Masks" / f"{stem}.png").read_bytes()
    return parse_mask(data, stem, (WIDTH, HEIGHT)).marked


@pytest.mark.parametrize("seed", range(6))
def test_a_polygon_becomes_the_smallest_rectangle_around_it(store: ArtefactStore, seed: int) -> None:
    land(store, "a.jpg")
    generator = np.random.default_rng(seed)
    points = (generator.normal(0, (60, 20), (9, 2)) + np.array([400, 300])).astype(np.float32)
    document = coco(segmentation=[points.ravel().tolist()])
    assert run(store, {"all.json": json.dumps(document)}, format="coco", **NAMED).refusals == []
    (found,) = polygons(store)
    _, sides, _ = cv2.minAreaRect(points)
    assert found.area == pytest.approx(sides[0] * sides[1], rel=1e-4)
    assert found.buffer(1e-2).covers(shapely.MultiPoint(points))


@pytest.mark.parametrize("corner", [(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)])
@pytest.mark.parametrize("as_pixels", [False, True])
def test_a_lesion_in_a_corner_of_the_image_lies_whole_in_its_box(
    store: ArtefactStore, corner: tuple[int, int], *, as_pixels: bool
) -> None:
    land(store, "a.jpg")
    # A slanted band, whose smallest rectangle would leave the image.
    band = np.array([(0, 0), (70, 0), (150, 60), (150, 130)], float)
    points = np.abs(np.array(corner) - band)
    segmentation: Any = [points.ravel().tolist()]
    lesion = shapely.Polygon(points)
    if as_pixels:
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        pixels = shapely.contains_xy(lesion, x, y)
        values = pixels.ravel(order="F")
        changes = np.flatnonzero(np.diff(values, prepend=False))
        counts = np.diff(changes, prepend=0, append=values.size).tolist()
        segmentation = {"size": [HEIGHT, WIDTH], "counts": counts}
        rows, columns = np.nonzero(pixels)
        lesion = shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))
    run(store, {"all.json": json.dumps(coco(segmentation=segmentation))}, format="coco", **NAMED)
    (found,) = polygons(store)
    assert shapely.box(0, 0, WIDTH, HEIGHT).covers(found)
    assert lesion.difference(found).area < 1e-2
    assert found.area <= shapely.box(*lesion.bounds).area + 1e-2


@pytest.mark.parametrize("degrees", [-170.0, -30.0, 0.0, 12.5, 90.0, 200.0, 359.0])
def test_turned_boxes_of_cvat_coco_and_label_studio_are_those_of_shapely(store: ArtefactStore, degrees: float) -> None:
    land(store, "a.jpg")
    box = shapely.box(340, 250, 460, 310)
    element = f'<box label="vessel" xtl="340" ytl="250" xbr="460" ybr="310" rotation="{degrees}"/>'
    assert run(store, {"a.xml": cvat(element)}, format="cvat", **NAMED).refusals == []
    # y points down, so that shapely's angle, counter-clockwise where y points up, goes clockwise as CVAT's.
    assert same(polygons(store)[0], affinity.rotate(box, degrees, origin=(400, 280)))

    document: Any = coco(bbox=[340, 250, 120, 60], segmentation=[], attributes={"occluded": False, "rotation": degrees})
    assert run(store, {"a.json": json.dumps(document)}, format="coco", replace=True, **NAMED).refusals == []
    assert same(polygons(store)[0], affinity.rotate(box, degrees, origin=(400, 280)))

    value = rectangle(x=340 / 8, y=250 / 6, width=15, height=10, rotation=degrees)
    document = label_studio(value)
    assert run(store, {"a.json": json.dumps(document)}, format="label-studio", replace=True, **NAMED).refusals == []
    assert same(polygons(store)[0], affinity.rotate(box, degrees, origin=(340, 250)))


def test_dota_files_as_published_are_read(store: ArtefactStore) -> None:
    land(store, "P0001.jpg")
    text = (
        "imagesource:GoogleEarth\r\ngsd:0.146343590398\r\n"
        "310.5 120.25 420.5 180.75 380.25 260.5 300.5 200.5 vessel 0\r\n\r\n"
        "100.0 100.0 180.0 100.0 180.0 150.0 100.0 150.0 vessel 1\r\n"
        "500.0 100.0 580.0 100.0 580.0 150.0 500.0 150.0 vessel\r\n"
    )
    report = run(store, {"P0001.txt": "\ufeff" + text}, format="dota", units="pixel", **NAMED)
    assert (report.n_lesions, report.refusals) == (3, [])
    expected = [shapely.Polygon(OUTLINE), shapely.box(100, 100, 180, 150), shapely.box(500, 100, 580, 150)]
    assert all(map(same, polygons(store, "P0001"), expected))


def test_labelme_shapes_of_all_types_are_imported_or_refused_by_type(store: ArtefactStore) -> None:
    land(store, "a.jpg", "b.jpg", folder=ORIGINALS)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    ring = (np.hypot(x - 600, y - 300) < 40) & (np.hypot(x - 600, y - 300) > 15)
    picture = io.BytesIO()
    Image.fromarray(ring[260:340, 560:640].astype(np.uint8)).save(picture, "PNG")
    code = base64.b64encode(picture.getvalue()).decode()
    taken = [
        {"points": OUTLINE, "shape_type": "polygon"},
        {"points": [[200, 400], [230, 440]], "shape_type": "circle"},
        {"points": [[560, 260], [639, 339]], "shape_type": "mask", "mask": code},
    ]
    assert run(store, {"a.json": json.dumps(labelme(*taken))}, masks=True, format="labelme", **NAMED).refusals == []
    angles = np.arange(64) * 2 * math.pi / 64
    circle = shapely.Polygon(np.stack([200 + 50 * np.cos(angles), 400 + 50 * np.sin(angles)], axis=1))
    outlines = shapely.contains_xy(shapely.Polygon(OUTLINE), x, y) | shapely.contains_xy(circle, x, y)
    np.testing.assert_array_equal(mask_of(store), outlines | ring)

    left_out = [
        ({"points": [[1, 1]], "shape_type": "point"}, "the shape point of 1 points"),
        ({"points": [[1, 1], [9, 9]], "shape_type": "line"}, "the shape line of 2 points"),
        ({"points": [[1, 1], [9, 9], [20, 3]], "shape_type": "linestrip"}, "the shape linestrip of 3 points"),
        ({"points": [[1, 1], [9, 9]], "shape_type": "polygon"}, "the shape polygon of 2 points"),
        ({"points": [[1, 1], [9, 9]], "shape_type": "rectangle"}, "found a box, expected an outline"),
        ({"points": [[560, 260], [638, 339]], "shape_type": "mask", "mask": code}, "found a mask of (80, 80) px"),
        ({"points": [[760, 260], [839, 339]], "shape_type": "mask", "mask": code}, "a mask that leaves its image"),
        ({"points": [[560, 260], [639, 339]], "shape_type": "mask", "mask": "????"}, "a mask that can be decoded"),
        ({"points": [[560, 260], [639, 339]], "shape_type": "mask"}, "found no 'mask'"),
    ]
    document = json.dumps(labelme(*(shape for shape, _ in left_out)) | {"imagePath": "b.jpg"})
    report = run(store, {"b.json": document}, masks=True, format="labelme", only="b.json", **NAMED)
    found = {refusal.place: refusal.reason for refusal in report.refusals}
    for number, (_, reason) in enumerate(left_out, 1):
        assert reason in found[f"b.json: shape {number}"]
    assert report.written == []


@pytest.mark.parametrize("kind", ["rectangle", "rotation"])
def test_a_turned_rectangle_of_labelme_keeps_its_corners(store: ArtefactStore, kind: str) -> None:
    land(store, "a.jpg")
    turned = affinity.rotate(shapely.box(340, 250, 460, 310), 25)
    points = shapely.get_coordinates(turned)[:4].tolist()
    run(store, {"a.json": json.dumps(labelme({"points": points, "shape_type": kind}))}, format="labelme", **NAMED)
    assert same(polygons(store)[0], turned)


def test_masks_of_cvat_run_row_by_row_from_background_on(store: ArtefactStore) -> None:
    land(store, "a.jpg", folder=ORIGINALS)
    left, top, width = 700, 550, 100
    counts = [3, 90, 250, 1, 0, 40, 4616]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    offset, value = 0, False
    for count in counts:  # as CVAT does, one pixel after the other
        for _ in range(count):
            row, column = divmod(offset, width)
            expected[top + row, left + column] = value
            offset += 1
        value = not value
    rle = ", ".join(map(str, counts))
    element = f'<mask label="vessel" rle="{rle}" left="{left}" top="{top}" width="{width}" height="50"/>'
    assert run(store, {"a.xml": cvat(element)}, masks=True, format="cvat", **NAMED).refusals == []
    np.testing.assert_array_equal(mask_of(store), expected)


CVAT_REFUSED = {
    '<box label="vessel" xtl="1" ytl="2" xbr="30"/>': "found no 'ybr'",
    '<box label="vessel" xtl="40" ytl="2" xbr="30" ybr="9"/>': "found a box of -10 x 7",
    '<box label="vessel" xtl="1" ytl="2" xbr="30" ybr="nan"/>': "finite numbers",
    '<box label="vessel" xtl="1" ytl="2" xbr="30" ybr="9" rotation="nan"/>': "finite numbers",
    '<box xtl="1" ytl="2" xbr="30" ybr="9"/>': "found no 'label'",
    '<ellipse label="vessel" cx="9" cy="9" rx="5" ry="5"/>': "found the shape ellipse",
    '<polyline label="vessel" points="1,1;9,9"/>': "found the shape polyline",
    '<points label="vessel" points="1,1"/>': "found the shape points",
    '<cuboid label="vessel"/>': "found the shape cuboid",
    '<polygon label="vessel" points="1,1;9,9;20,3,4"/>': "expected numbers",
    '<polygon label="vessel" points="1,1,1;9,9,9;20,3,4"/>': "points of two numbers each",
    '<polygon label="vessel" points="1,1;9,9"/>': "found 2 points",
    '<mask label="vessel" rle="1, 2" left="0" top="0" width="3" height="2"/>': "run lengths of 3 px, expected 3x2",
    '<mask label="vessel" rle="6" left="799" top="0" width="3" height="2"/>': "leaves its image",
    '<mask label="vessel" rle="" left="0" top="0" width="3" height="2"/>': "invalid literal",
}


@pytest.mark.parametrize("element", CVAT_REFUSED)
def test_elements_of_cvat_that_are_no_lesion_are_refused_with_their_line(store: ArtefactStore, element: str) -> None:
    land(store, "a.jpg")
    good = '<box label="vessel" xtl="1" ytl="2" xbr="30" ybr="40"/>'
    tag = '<tag label="vessel"/>'
    report = run(store, {"a.xml": cvat(good, tag, element)}, format="cvat", **NAMED)
    (refusal,) = refusals(report)
    assert refusal.startswith("a.xml:4: ")
    assert CVAT_REFUSED[element] in refusal
    assert report.written == []


def test_a_file_with_a_track_of_a_video_is_refused_whole(store: ArtefactStore) -> None:
    land(store, "a.jpg")
    box = '<box frame="0" xtl="1" ytl="2" xbr="30" ybr="40" outside="0" occluded="0" keyframe="1"/>'
    image = f'<image name="a.jpg" width="{WIDTH}" height="{HEIGHT}"/>'
    document = f'<annotations>\n<track id="0" label="vessel">{box}</track>{image}</annotations>'
    with pytest.raises(ForeignFileError, match=r"a\.xml:2: found a track of a video, expected labels of images"):
        run(store, {"a.xml": document}, format="cvat")
    assert not (store.raw / "uwf-700/Labels/Uveitis/a.txt").exists()


@pytest.mark.parametrize("image_id", ["1", [1], 2, None])
def test_a_coco_file_with_a_lesion_of_an_unknown_image_is_refused_whole(store: ArtefactStore, image_id: Any) -> None:
    land(store, "a.jpg")
    document = coco(bbox=[320, 240, 100, 72], image_id=image_id)
    with pytest.raises(ForeignFileError, match=r"annotation 1: found image_id .*, which images does not list"):
        run(store, {"all.json": json.dumps(document)}, format="coco", **NAMED)
    # An empty label would say that somebody looked at the image and found nothing.
    assert not (store.raw / "uwf-700/Labels/Uveitis/a.txt").exists()


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ({"image": "a.jpg", "image2": "https://host/fa.png?signed=1"}, {}),
        ({"image": "a.jpg"}, {"to_name": "other"}),
        ({"image": "a.jpg"}, {"item_index": 1}),
    ],
)
def test_a_label_studio_task_of_several_images_is_refused(
    store: ArtefactStore, data: dict[str, str], changes: dict[str, Any]
) -> None:
    land(store, "a.jpg")
    box = rectangle(x=10, y=10, width=10, height=10)
    (task,) = label_studio(box, image="a.jpg")
    task["data"] = data
    results = task["annotations"][0]["result"]
    results.append(results[0] | changes)
    report = run(store, {"a.json": json.dumps([task])}, format="label-studio", **NAMED)
    assert report.written == []
    assert ["images, expected one" in refusal for refusal in refusals(report)] == [True]


def test_a_number_sign_belongs_to_the_name_of_a_label_studio_image(store: ArtefactStore) -> None:
    land(store, "a.jpg", "a#1.jpg")
    task = label_studio(rectangle(x=10, y=10, width=10, height=10), image="s3://bucket/a#1.jpg")
    report = run(store, {"a.json": json.dumps(task)}, format="label-studio", **NAMED)
    assert report.written == ["Labels/Uveitis/a#1.txt"]


YOLO_REFUSED = {
    "3 370 276 100 72 87": "found the confidence 87, expected one within 0..1",
    "3 370 276 100 72 -0.1": "found the confidence -0.1",
    "3 370 276 -100 72": "found a box of -100 x 72",
    "-1 370 276 100 72": "found class '-1'",
    "3.5 370 276 100 72": "found class '3.5'",
    "3 3_70 276 100 72": "found 3_70",
    "3 370 276 1e999 72": "found 1e999, expected a finite number",
    "3 370 276": "found 3 values",
    "3,370,276,100,72": "found class",
}


@pytest.mark.parametrize("row", YOLO_REFUSED)
def test_rows_of_yolo_that_say_nothing_certain_are_refused(store: ArtefactStore, row: str) -> None:
    land(store, "a.jpg")
    report = run(store, {"a.txt": f"# boxes\n{row}\n"}, format="yolo", min_confidence=0.0, **YOLO)
    (refusal,) = refusals(report)
    assert refusal.startswith(f"a.txt:2: {YOLO_REFUSED[row]}")
    assert report.written == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"bbox": [320, 240, -100, 72]}, "found a box of -100 x 72"),
        ({"bbox": [320, 240, 100]}, "expected x, y, width, height"),
        ({"bbox": [320, 240, 100, 72], "score": math.nan}, "expected finite numbers"),
        ({"bbox": [320, 240, 100, 72], "score": "high"}, "expected numbers"),
        ({"bbox": [320, 240, 100, 72], "score": 3}, "found the confidence 3"),
    ],
)
def test_rows_of_coco_that_say_nothing_certain_are_refused(
    store: ArtefactStore, row: dict[str, Any], reason: str
) -> None:
    land(store, "a.jpg")
    report = run(store, {"all.json": json.dumps(coco(**row))}, format="coco", min_confidence=0.5, **NAMED)
    (refusal,) = refusals(report)
    assert refusal.startswith("all.json: annotation 1: ")
    assert reason in refusal


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/3/01234567-a.jpg",
        "/data/local-files/?d=scans/left%20eyes/a.jpg",
        "/data/local-files/?d=C%3A%5Cscans%5Ca.jpg",
        "https://bucket.example.org/scans/a.jpg?signature=abc",
        "s3://bucket/scans/a.jpg",
        "a.jpg",
    ],
)
def test_the_image_of_a_label_studio_task_is_found_by_its_address(store: ArtefactStore, image: str) -> None:
    land(store, "a.jpg")
    document = json.dumps(label_studio(rectangle(x=10, y=10, width=10, height=10), image=image))
    report = run(store, {"a.json": document}, format="label-studio", **NAMED)
    assert (report.written, report.refusals) == (["Labels/Uveitis/a.txt"], [])


@pytest.mark.parametrize("image", ["http://[broken/a.jpg", "data:image/png;base64,iVBORw0KGgo", "", "/", "b.jpg"])
def test_a_label_studio_task_of_no_image_is_refused(store: ArtefactStore, image: str) -> None:
    land(store, "c.jpg")
    document = json.dumps(label_studio(rectangle(x=10, y=10, width=10, height=10), image=image))
    (refusal,) = refusals(run(store, {"a.json": document}, format="label-studio", **NAMED))
    assert refusal.startswith("a.json: task 9: found ")


def test_label_studio_tasks_are_taken_as_their_annotator_finished_them(store: ArtefactStore) -> None:
    land(store, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    box = rectangle(x=10, y=10, width=10, height=10)
    tasks = []
    for stem in "abcde":
        (task,) = label_studio(box, image=f"{stem}.jpg")
        tasks.append(task | {"id": stem})
    remark = {"type": "choices", "value": {"choices": ["blurred"]}, "original_width": 5}
    relation = {"type": "relation", "from_id": "x", "to_id": "y"}
    tasks[0]["annotations"][0]["result"] += [remark, relation]
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"] *= 2
    tasks[3]["annotations"][0]["result"] = [remark]
    tasks[4]["annotations"][0]["result"].append(
        tasks[4]["annotations"][0]["result"][0] | {"original_width": WIDTH + 1, "original_height": HEIGHT}
    )
    report = run(store, {"a.json": json.dumps(tasks)}, format="label-studio", **NAMED)
    assert report.written == ["Labels/Uveitis/a.txt", "Labels/Uveitis/d.txt"]
    assert (store.raw / "uwf-700/Labels/Uveitis/d.txt").read_bytes() == b""
    assert [refusal.partition(": found")[0] for refusal in refusals(report)] == [
        "a.json: task c",
        "a.json: task e, result 2",
    ]
