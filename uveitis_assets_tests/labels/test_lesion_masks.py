"""Lesion masks: every format means the same lesions; components and outlines against independent counts."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.ndimage
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.masks.lesion_masks import lesions_of_mask, parse_lesion_masks
from uveitis_assets.labels.masks.mask_files import parse_mask
from uveitis_assets.landing.quarantine import QuarantineError

WIDTH, HEIGHT = 50, 40
TRUTH = np.zeros((HEIGHT, WIDTH), bool)
TRUTH[5:12, 30:41] = True
TRUTH[20:39, 2] = True
EIGHT = np.ones((3, 3))

Pixels = NDArray[np.generic]


def pillow(pixels: Pixels | Image.Image, extension: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, extension, **options)
    return stream.getvalue()


def opencv(pixels: Pixels, extension: str = ".png") -> bytes:
    return cv2.imencode(extension, pixels)[1].tobytes()


def palette(indices: Pixels, colors: list[int], **options: object) -> bytes:
    image = Image.frombytes("P", (WIDTH, HEIGHT), indices.astype(np.uint8).tobytes())
    image.putpalette(colors)
    return pillow(image, **options)


def channels(*levels: int) -> NDArray[np.uint8]:
    """The truth in the given levels per channel on zeros."""
    return (TRUTH[..., None] * np.array(levels)).astype(np.uint8)


OPAQUE_RGBA = channels(200, 0, 0, 0) | np.array([0, 0, 0, 255], np.uint8)
DEEP_RGBA = (OPAQUE_RGBA.astype(np.uint16) > 0) * np.array([1, 1, 1, 65535], np.uint16)
WHITE_TRANSPARENT = np.where(TRUTH[..., None], [1, 2, 3, 255], [255, 255, 255, 0]).astype(np.uint8)
GREY_OPAQUE = np.dstack([TRUTH * 9, np.full_like(TRUTH, 255, np.uint8)]).astype(np.uint8)

FORMATS: dict[str, Callable[[], bytes]] = {
    "1-bit": lambda: pillow(TRUTH),
    "8-bit, level 1": lambda: pillow(TRUTH.astype(np.uint8)),
    "8-bit, level 255": lambda: pillow(TRUTH.astype(np.uint8) * 255),
    "palette, index 1 red": lambda: palette(TRUTH, [0, 0, 0, 255, 0, 0]),
    "palette, black at index 3": lambda: palette(np.where(TRUTH, 0, 3), [9, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]),
    "palette, transparent white": lambda: palette(TRUTH, [255, 255, 255, 255, 0, 0], transparency=0),
    "palette, alpha table": lambda: palette(TRUTH, [255, 255, 255, 255, 0, 0], transparency=b"\x00\xff"),
    "RGB": lambda: pillow(channels(0, 0, 7)),
    "RGB, transparent colour": lambda: pillow(channels(5, 5, 5) + np.uint8(3), transparency=(3, 3, 3)),
    "RGBA, opaque": lambda: pillow(OPAQUE_RGBA),
    "RGBA, transparent background": lambda: pillow(WHITE_TRANSPARENT),
    "grey and alpha": lambda: pillow(Image.fromarray(GREY_OPAQUE, "LA")),
    "16-bit, level 1": lambda: opencv(TRUTH.astype(np.uint16)),
    "16-bit, level 256": lambda: opencv(TRUTH.astype(np.uint16) * 256),
    "16-bit RGB, level 1": lambda: opencv(channels(0, 1, 0).astype(np.uint16)),
    "16-bit RGBA, opaque": lambda: opencv(DEEP_RGBA),
    "32-bit TIFF": lambda: pillow(TRUTH.astype(np.int32), "TIFF"),
    "float TIFF": lambda: pillow(TRUTH.astype(np.float32), "TIFF"),
    "16-bit RGB TIFF": lambda: opencv(channels(0, 1, 0).astype(np.uint16), ".tif"),
    "BMP": lambda: pillow(TRUTH.astype(np.uint8), "BMP"),
    "JPEG": lambda: pillow(TRUTH.astype(np.uint8) * 255, "JPEG", quality=95),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_marks_the_same_pixels(name: str) -> None:
    mask = parse_mask(FORMATS[name](), "mask", (WIDTH, HEIGHT)).marked
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, TRUTH)


def test_a_mask_with_an_exif_orientation_is_read_as_displayed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: displayed after 90 degrees clockwise
    stored = np.rot90(TRUTH).astype(np.uint8)
    np.testing.assert_array_equal(parse_mask(pillow(stored, exif=exif), "mask", (WIDTH, HEIGHT)).marked, TRUTH)


TWO_FRAMES = {"save_all": True, "append_images": [Image.fromarray(~TRUTH)]}
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (pillow(TRUTH[:, :-1]), "found 49x40 pixels, expected its image's 50x40"),
        (pillow(TRUTH.T.copy()), "found 40x50 pixels"),
        (b"", "expected a mask image that can be decoded"),
        (b"not an image", "expected a mask image that can be decoded"),
        (pillow(NOISE)[:900], "truncated"),
        (pillow(np.ones((HEIGHT, WIDTH), np.uint8)), "found every pixel marked as lesion"),
        (pillow(channels(0, 0, 0, 255)), "found black on transparent"),
        (pillow(Image.fromarray(TRUTH), "TIFF", **TWO_FRAMES), "found 2 frames"),
        (pillow(Image.new("CMYK", (WIDTH, HEIGHT)), "TIFF"), "colour mode CMYK"),
    ],
)
def test_implausible_masks_are_bad_labels(data: bytes, found: str) -> None:
    with pytest.raises(QuarantineError) as caught:
        parse_mask(data, "HardExudate_Masks/7.png", (WIDTH, HEIGHT))
    assert caught.value.reason == "bad_label"
    assert caught.value.detail.startswith("HardExudate_Masks/7.png: ")
    assert found in caught.value.detail


WHOLE: dict[str, Any] = {"crop_box": (0, 0, WIDTH, HEIGHT), "max_marked_share": 0.5}


def test_folders_give_the_classes_and_do_not_merge() -> None:
    space = load_class_map().label_space("mask")
    names = ["SoftExudate_Masks/a b.png", "HardExudate_Masks/a b.png", "Hemohedge_Masks/sub/a b.png"]
    lesions = parse_lesion_masks([(name, pillow(TRUTH)) for name in names], space, (WIDTH, HEIGHT), 12, **WHOLE)
    assert lesions.category_ids.tolist() == [15, 15, 5, 5, 15, 15]
    assert lesions.boxes[:2].tolist() == [[30, 5, 41, 12], [2, 20, 3, 39]]
    assert lesions.corners is None
    with pytest.raises(QuarantineError, match=r"Drusen_Masks/a\.png: found class 'Drusen_Masks', expected one of Hard"):
        parse_lesion_masks([("Drusen_Masks/a.png", b"")], space, (WIDTH, HEIGHT), 12, **WHOLE)


@pytest.mark.parametrize("white_outside", [True, False])
def test_an_inverted_mask_is_refused_by_name_and_share(white_outside: bool) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    retina = np.hypot(x - 25, y - 20) < 18
    inverted = ~TRUTH & (retina | white_outside)
    space = load_class_map().label_space("mask")
    file = ("IRMA_Masks/left.png", pillow(inverted))
    with pytest.raises(
        QuarantineError, match=r"IRMA_Masks/left\.png: found \d+% of the retina marked.* inverted"
    ) as caught:
        parse_lesion_masks([file], space, (WIDTH, HEIGHT), 1, crop_box=(7, 2, 43, 38), max_marked_share=0.5)
    assert caught.value.reason == "bad_label"
    allowed = parse_lesion_masks([file], space, (WIDTH, HEIGHT), 1, crop_box=(7, 2, 43, 38), max_marked_share=1.0)
    assert len(allowed)


def test_lesions_over_less_than_half_of_the_retina_are_kept() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :18] = True
    file = ("Neovascularization_Masks/a.png", pillow(mask))
    assert len(parse_lesion_masks([file], load_class_map().label_space("mask"), (WIDTH, HEIGHT), 1, **WHOLE)) == 1


def boxes_by_scipy(mask: NDArray[np.bool_], min_area: int) -> set[tuple[int, int, int, int]]:
    labels, _ = scipy.ndimage.label(mask, EIGHT)
    areas = np.bincount(labels.ravel())
    return {
        (columns.start, rows.start, columns.stop, rows.stop)
        for number, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), start=1)
        if areas[number] >= min_area
    }


masks = arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))


@settings(max_examples=80)
@given(masks, st.integers(1, 14))
def test_boxes_are_those_of_an_independent_component_labelling(mask: NDArray[np.bool_], min_area: int) -> None:
    lesions = lesions_of_mask(mask, 5, min_area)
    boxes = [tuple(int(value) for value in box) for box in lesions.boxes]
    assert set(boxes) == boxes_by_scipy(mask, min_area)
    assert boxes == sorted(boxes, key=lambda box: (box[1], box[0]))
    assert lesions.category_ids.tolist() == [5] * len(boxes)


@settings(max_examples=80)
@given(masks)
def test_outlines_are_valid_fill_their_box_and_cover_the_pixels_of_their_component(mask: NDArray[np.bool_]) -> None:
    lesions = lesions_of_mask(mask, 5, 1)
    assert shapely.is_valid(lesions.outlines).all()
    labels, _ = scipy.ndimage.label(mask, EIGHT)
    for box, outline in zip(lesions.boxes, lesions.outlines, strict=True):
        assert (np.asarray(outline.bounds)[:2] >= box[:2]).all()
        assert (np.asarray(outline.bounds)[2:] <= box[2:]).all()
        assert not outline.is_empty
        filled = scipy.ndimage.binary_fill_holes(labels == _label_in(labels, box))
        ys, xs = np.nonzero(filled)
        # Simplification moves the border by at most 0.75 px: a pixel's centre stays within that of the outline.
        assert shapely.distance(outline, shapely.points(xs + 0.5, ys + 0.5)).max() <= 0.75


@settings(max_examples=80)
@given(masks)
def test_regions_are_the_pixels_of_components_that_enclose_background(mask: NDArray[np.bool_]) -> None:
    lesions = lesions_of_mask(mask, 5, 1)
    labels, _ = scipy.ndimage.label(mask, EIGHT)
    regions = () if lesions.regions is None else lesions.regions
    for box, region in zip(lesions.boxes, regions, strict=True):
        component = labels == _label_in(labels, box)
        holes = scipy.ndimage.binary_fill_holes(component) & ~component
        assert (region is not None) == bool(holes.any())
        if region is not None:
            x0, y0, x1, y1 = box.astype(int)
            np.testing.assert_array_equal(region.pixels, component[y0:y1, x0:x1])
            np.testing.assert_array_equal(region.holes, holes[y0:y1, x0:x1])
            assert (region.left, region.top) == (x0, y0)


def _label_in(labels: NDArray[np.int32], box: NDArray[np.float64]) -> int:
    x0, y0, x1, y1 = box.astype(int)
    objects = scipy.ndimage.find_objects(labels)
    return 1 + objects.index((slice(y0, y1, None), slice(x0, x1, None)))


def test_a_rectangle_s_outline_is_the_rectangle_at_its_pixel_edges() -> None:
    mask = np.zeros((20, 20), bool)
    mask[3:8, 4:10] = True
    lesions = lesions_of_mask(mask, 1, 1)
    assert lesions.outlines[0].equals(shapely.box(4, 3, 10, 8))


def test_a_disc_s_outline_has_the_disc_s_area() -> None:
    y, x = np.mgrid[:200, :200]
    mask = np.hypot(x - 100, y - 90) < 60
    lesions = lesions_of_mask(mask, 1, 1)
    assert lesions.outlines[0].area == pytest.approx(mask.sum(), rel=0.01)
    assert shapely.get_num_coordinates(lesions.outlines[0]) < 80


def test_real_masks_give_as_many_boxes_as_an_independent_component_labelling(real_data: Path) -> None:
    folder = real_data / "idrid_fgadr_layout"
    checked = 0
    for path in sorted(folder.glob("*_Masks/IDRiD_0[13].png")):
        mask = parse_mask(path.read_bytes(), path.name, (4288, 2848)).marked
        np.testing.assert_array_equal(mask, np.asarray(Image.open(path)))
        lesions = lesions_of_mask(mask, 1, 12)
        assert {tuple(box) for box in lesions.boxes.astype(int).tolist()} == boxes_by_scipy(mask, 12)
        checked += len(lesions)
    assert checked > 300
