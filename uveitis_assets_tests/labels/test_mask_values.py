"""Masks that are not two-valued: noise, soft rims, numbers, doubtful palettes, in many containers."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from uveitis_assets.labels.masks.mask_files import parse_mask
from uveitis_assets.landing.quarantine import QuarantineError

WIDTH, HEIGHT = 400, 300


def drawn() -> NDArray[np.uint8]:
    """Six lesions from 21 px to 1,900 px, two of them 2 px apart."""
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    for centre, axes in [
        ((60, 60), (4, 4)),
        ((71, 62), (4, 5)),
        ((200, 150), (30, 20)),
        ((330, 220), (2, 2)),
        ((350, 50), (7, 3)),
        ((100, 240), (6, 12)),
    ]:
        cv2.ellipse(truth, centre, axes, 0, 0, 360, 255, -1)
    return truth


TRUTH = drawn()
LABELS = cv2.connectedComponents(TRUTH)[1]


def encoded(pixels: NDArray[Any] | Image.Image, container: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, container, **options)
    return stream.getvalue()


def once_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(encoded(pixels, "JPEG", quality=quality))))


def enlarged(interpolation: int) -> NDArray[np.uint8]:
    large = cv2.resize(TRUTH, (3 * WIDTH, 3 * HEIGHT), interpolation=cv2.INTER_NEAREST)
    return cv2.resize(cv2.GaussianBlur(large, (7, 7), 2.0), (WIDTH, HEIGHT), interpolation=interpolation)


SOFT = (cv2.GaussianBlur(TRUTH, (5, 5), 1.0) / 255.0).astype(np.float32)
WHITE = np.full_like(TRUTH, 255)

GREY: dict[str, bytes] = {
    "PNG of a JPEG of quality 95": encoded(once_jpeg(TRUTH, 95)),
    "PNG of a JPEG of quality 60": encoded(once_jpeg(TRUTH, 60)),
    "PNG of a JPEG of quality 20": encoded(once_jpeg(TRUTH, 20)),
    "BMP of a JPEG": encoded(once_jpeg(TRUTH, 75), "BMP"),
    "TIFF of a JPEG": encoded(once_jpeg(TRUTH, 75), "TIFF", compression="tiff_lzw"),
    "JPEG": encoded(TRUTH, "JPEG", quality=75),
    "RGB JPEG": encoded(np.dstack([TRUTH] * 3), "JPEG", quality=75),
    "TIFF with JPEG compression": encoded(TRUTH, "TIFF", compression="jpeg", quality=75),
    "RGB TIFF with JPEG compression": encoded(np.dstack([TRUTH] * 3), "TIFF", compression="jpeg", quality=75),
    "palette of a JPEG": encoded(Image.fromarray(once_jpeg(TRUTH, 75)).convert("P")),
    "area interpolation": encoded(enlarged(cv2.INTER_AREA)),
    "linear interpolation": encoded(enlarged(cv2.INTER_LINEAR)),
    "soft rims, 16-bit": encoded((SOFT * 65535).astype(np.uint16)),
    "soft rims, float": encoded(SOFT, "TIFF"),
    "soft rims, float with overshoot": encoded(SOFT * 1.2 - 0.1, "TIFF"),
    "soft rims, dim lesions": encoded((SOFT * 90).astype(np.uint8)),
    "soft rims, red": encoded(np.dstack([(SOFT * 255).astype(np.uint8), TRUTH * 0, TRUTH * 0])),
    "soft opacity": encoded(np.dstack([WHITE] * 3 + [(SOFT * 255).astype(np.uint8)])),
}


@pytest.mark.parametrize("name", GREY)
def test_a_grey_mask_is_cut_at_half_height_and_named_with_its_share_of_grey(name: str) -> None:
    reading = parse_mask(GREY[name], "Hemohedge_Masks/a.png", (WIDTH, HEIGHT))
    n_wrong = int((reading.marked != (TRUTH > 0)).sum())
    # Pixels of the border, which a blur of two pixels cannot place exactly; noise that is kept would be hundreds.
    assert n_wrong <= 25
    assert cv2.connectedComponents(reading.marked.view(np.uint8))[0] == 1 + 6
    (finding,) = reading.findings
    assert finding.kind == "grey_mask"
    assert finding.detail.startswith("Hemohedge_Masks/a.png: ")
    assert "%): compression noise or soft rims" in finding.detail


def test_the_share_of_grey_pixels_is_theirs_among_all_that_are_not_background() -> None:
    pixels = TRUTH.copy()
    rim = cv2.dilate(TRUTH, np.ones((3, 3), np.uint8)) > TRUTH
    pixels[rim] = 60
    (finding,) = parse_mask(encoded(pixels), "a.png", (WIDTH, HEIGHT)).findings
    n_rim, n_all = int(rim.sum()), int((pixels > 0).sum())
    assert f"{n_rim} of {n_all} pixels that are not background are grey ({n_rim / n_all:.1%})" in finding.detail


EXACT: dict[str, bytes] = {
    "numbers of lesions": encoded(LABELS.astype(np.uint8)),
    "numbers of lesions, 16-bit": encoded((LABELS * 7000).astype(np.uint16)),
    "numbers of lesions, float": encoded(LABELS.astype(np.float32), "TIFF"),
    "two classes": encoded(np.where(LABELS == 3, 128, TRUTH).astype(np.uint8)),
    "three colours": encoded(np.dstack([(LABELS == 1) * 200, (LABELS == 2) * 255, (LABELS > 2) * 90]).astype(np.uint8)),
    "white is zero": encoded(TRUTH, "TIFF", tiffinfo={262: 0}),
    "white is zero, 1-bit": encoded(TRUTH > 0, "TIFF", tiffinfo={262: 0}),
    # Pillow writes 16-bit values as they are.
    "white is zero, 16-bit": encoded(np.where(TRUTH, 0, 65535).astype(np.uint16), "TIFF", tiffinfo={262: 0}),
}


@pytest.mark.parametrize("name", EXACT)
def test_flat_levels_are_all_lesion_as_they_are(name: str) -> None:
    reading = parse_mask(EXACT[name], "a.png", (WIDTH, HEIGHT))
    np.testing.assert_array_equal(reading.marked, TRUTH > 0)
    assert not reading.findings


def palette(numbers: NDArray[Any], colors: dict[int, tuple[int, int, int]]) -> bytes:
    image = Image.frombytes("P", (WIDTH, HEIGHT), numbers.astype(np.uint8).tobytes())
    table = np.zeros((256, 3), np.uint8)
    for entry, color in colors.items():
        table[entry] = color
    image.putpalette(table.tobytes())
    return encoded(image)


@pytest.mark.parametrize("entry", [1, 7, 255])
def test_a_palette_of_two_blacks_is_read_by_its_numbers_and_named(entry: int) -> None:
    reading = parse_mask(palette(np.where(TRUTH, entry, 0), {}), "a.png", (WIDTH, HEIGHT))
    np.testing.assert_array_equal(reading.marked, TRUTH > 0)
    (finding,) = reading.findings
    assert f"entries 0, {entry} are all black; 0 is read as background" in finding.detail


def test_two_blacks_beside_a_colour_are_background_and_named() -> None:
    numbers = np.where(TRUTH, 3, np.arange(WIDTH)[None] % 2)
    reading = parse_mask(palette(numbers, {3: (255, 0, 0)}), "a.png", (WIDTH, HEIGHT))
    np.testing.assert_array_equal(reading.marked, TRUTH > 0)
    assert "entries 0, 1 are all black; all are read as background" in reading.findings[0].detail


NOT_FINITE = np.where(TRUTH, np.nan, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encoded((TRUTH > 0).astype(np.uint8) * 6, "JPEG"), "of 255 that vary"),
        (encoded(np.random.default_rng(0).integers(0, 5, (HEIGHT, WIDTH)).astype(np.uint8)), "levels up to 4 of 255"),
        (encoded(NOT_FINITE, "TIFF"), "values that are not finite"),
    ],
)
def test_a_mask_whose_lesions_cannot_be_told_from_noise_is_refused(data: bytes, found: str) -> None:
    with pytest.raises(QuarantineError, match=found) as caught:
        parse_mask(data, "a.png", (WIDTH, HEIGHT))
    assert caught.value.reason == "bad_label"
    assert caught.value.detail.startswith("a.png: ")


@pytest.mark.parametrize("container", ["PNG", "JPEG", "TIFF"])
def test_a_black_mask_has_no_lesions(container: str) -> None:
    reading = parse_mask(encoded(TRUTH * 0, container), "a.png", (WIDTH, HEIGHT))
    assert not reading.marked.any()
    assert not reading.findings
