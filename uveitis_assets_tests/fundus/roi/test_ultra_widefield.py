"""The ultra-widefield ROI method, against outlines drawn by eye and on pictures made to break it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uveitis_assets.fundus.roi.ultra_widefield import extend_to_black, uwf_retina_mask
from uveitis_assets.fundus.roi.ultra_widefield_polar import percentile_of_levels
from uveitis_assets.sample import render_ultra_widefield

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Outlined:
    """A photograph, its retina, what no score counts, and the mask found, all at 768 px."""

    name: str
    image: Image
    retina: Image
    ignored: Image
    found: Image


@pytest.fixture(scope="module")
def outlined(real_data: Path) -> list[Outlined]:
    examples = []
    for truth_file in sorted((real_data / "uwf" / "roi_truth").glob("*.json")):
        truth = json.loads(truth_file.read_text())
        image = cv2.imread(str(real_data / "uwf" / "images" / truth["image"]), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        assert image.shape[:2] == (truth["height"], truth["width"])
        scale = 768 / max(image.shape[:2])
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        masks = []
        for polygons in ([truth["polygon"]], truth["ignore"]):
            mask = np.zeros(small.shape[:2], np.uint8)
            for polygon in polygons:
                cv2.fillPoly(mask, [np.round(np.array(polygon) * scale).astype(np.int32)], 255)
            masks.append(mask)
        found = uwf_retina_mask(small)
        found.flags.writeable = False
        examples.append(Outlined(truth_file.stem, small, *masks, found))
    assert len(examples) == 8
    return examples


def score(mask: Image, retina: Image, ignored: Image) -> float:
    """Intersection over union outside the ignored pixels."""
    counted = ignored == 0
    found, truth = mask[counted] > 0, retina[counted] > 0
    return float((found & truth).sum() / (found | truth).sum())


def rotated(picture: Image, degrees: float) -> Image:
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    flags = cv2.INTER_LINEAR if picture.ndim == 3 else cv2.INTER_NEAREST
    return np.asarray(cv2.warpAffine(picture, matrix, (width, height), flags=flags), dtype=np.uint8)


def cropped(picture: Image) -> Image:
    height, width = picture.shape[:2]
    return np.ascontiguousarray(picture[height // 20 : -(height // 20), width // 20 : -(width // 20)])


def bordered(picture: Image) -> Image:
    return np.asarray(cv2.copyMakeBorder(picture, 60, 60, 80, 20, cv2.BORDER_CONSTANT, value=0), dtype=np.uint8)


def squeezed(picture: Image) -> Image:
    interpolation = cv2.INTER_LINEAR if picture.ndim == 3 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, None, fx=0.8, fy=1, interpolation=interpolation), dtype=np.uint8)


def cut_to_retina(picture: Image) -> Image:
    height, width = picture.shape[:2]
    rows, columns = int(0.22 * height), int(0.22 * width)
    return np.ascontiguousarray(picture[rows : height - rows, columns : width - columns])


def values_changed(change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Callable[[Image], Image]:
    """A change of the photograph that leaves the masks alone."""
    return lambda picture: (
        picture if picture.ndim == 2 else np.clip(np.round(change(picture.astype(np.float64))), 0, 255).astype(np.uint8)
    )


def compressed(picture: Image) -> Image:
    if picture.ndim == 2:
        return picture
    ok, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert ok
    assert decoded is not None
    return np.asarray(decoded, dtype=np.uint8)


def with_bleed(picture: Image) -> Image:
    """A dark disc with a sharp edge, a sixth of the frame wide, wholly within the retina."""
    if picture.ndim == 2:
        return picture
    height, width = picture.shape[:2]
    result = picture.copy()
    cv2.ellipse(result, (int(0.45 * width), int(0.5 * height)), (width // 12, height // 12), 0, 0, 360, (30, 10, 2), -1)
    return result


CHANGES: dict[str, Callable[[Image], Image]] = {
    "mirrored": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
    "rotated by 5 degrees": lambda picture: rotated(picture, 5),
    "rotated by -5 degrees": lambda picture: rotated(picture, -5),
    "darker": values_changed(lambda values: values * 0.7),
    "brighter": values_changed(lambda values: values * 1.4),
    "gamma 1.4": values_changed(lambda values: 255 * (values / 255) ** 1.4),
    "redder": values_changed(lambda values: values * (1.2, 0.8, 1)),
    "greener": values_changed(lambda values: values * (0.8, 1.2, 1)),
    "blurred": values_changed(lambda values: np.asarray(cv2.GaussianBlur(values, (0, 0), 2))),
    "JPEG quality 40": compressed,
    "5 % of the border cropped": cropped,
    "black border added": bordered,
    "bleed": with_bleed,
    "gamma 0.5": values_changed(lambda values: 255 * (values / 255) ** 0.5),
    "twice as bright and clipped": values_changed(lambda values: values * 2),
    "much darker": values_changed(lambda values: values * 0.4),
    "red in all channels": values_changed(lambda values: np.repeat(values[..., :1], 3, axis=2)),
    "green in all channels": values_changed(lambda values: np.repeat(values[..., 1:2], 3, axis=2)),
    "squeezed": squeezed,
    "cut to the retina": cut_to_retina,
}
# The red/green ratio is gone from these, and with it much of the contrast between retina and lid.
ONE_CHANNEL = ("red in all channels", "green in all channels")


def assert_one_component_without_holes(mask: Image) -> None:
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    n_components, _ = cv2.connectedComponents(mask, connectivity=8)
    assert n_components == 2
    # Background that cannot be reached from outside the image is a hole.
    surrounded = np.pad(mask, 1)
    n_backgrounds, _ = cv2.connectedComponents(255 - surrounded, connectivity=4)
    assert n_backgrounds == 2


def test_outlines_drawn_by_eye_are_found(outlined: list[Outlined]) -> None:
    scores = {e.name: score(e.found, e.retina, e.ignored) for e in outlined}
    assert min(scores.values()) >= 0.955, scores
    assert np.mean(list(scores.values())) >= 0.97, scores


def darkened_outwards(image: Image, share: float, x: float, y: float) -> Image:
    """Light that falls by a share between half a frame and a whole one from a place, given as shares of the frame."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot((columns / width - x) * 2, (rows / height - y) * 2)
    fall = np.clip((distance - 0.5) / 0.5, 0, 1)
    return np.round(image * (1 - share * fall**2 * (3 - 2 * fall))[..., None]).astype(np.uint8)


@pytest.mark.parametrize(("x", "y"), [(0.5, 0.5), (0.7, 0.5)], ids=["all around", "on the left"])
def test_a_dim_periphery_is_kept(x: float, y: float, outlined: list[Outlined]) -> None:
    scores, kept = {}, {}
    for example in outlined:
        mask = uwf_retina_mask(darkened_outwards(example.image, 0.6, x, y))
        scores[example.name] = score(mask, example.retina, example.ignored)
        counted = (example.retina > 0) & (example.ignored == 0)
        kept[example.name] = (mask[counted] > 0).mean()
    assert np.mean(list(scores.values())) >= 0.955, scores
    assert min(scores.values()) >= 0.90, scores
    assert min(kept.values()) >= 0.93, kept


def test_black_bars_stay_black_beside_a_banner_and_with_compression_noise(outlined: list[Outlined]) -> None:
    for example in outlined:
        height, width = example.retina.shape
        noise = np.random.default_rng(3).normal(3, 2, (2 * 30, width, 3))
        bars = np.clip(noise, 0, 255).astype(np.uint8)
        picture = np.vstack([bars[:30], example.image, bars[30:]])
        picture[:38, : width // 10] = 170  # a pixelated name, over the bar and the photograph's corner
        mask = uwf_retina_mask(compressed(picture))
        # JPEG carries light over one block of 8 px.
        assert (mask[:22] > 0).mean() <= 0.002, example.name
        assert (mask[38 + height :] > 0).mean() <= 0.002, example.name
        ignored = example.ignored.copy()
        ignored[:8, : width // 10] = 255
        assert score(mask[30 : 30 + height], example.found, ignored) >= 0.95, example.name


def test_a_lid_beside_black_is_not_added() -> None:
    """A narrow strip brighter than the retina beside it, as the lids of photographs on black are."""
    field, outline = np.zeros((2, 1000, 1000), np.uint8)
    cv2.circle(field, (500, 500), 400, 100, -1)
    cv2.circle(outline, (500, 500), 390, 255, -1)
    field[(field > 0) & (outline == 0)] = 150
    assert np.array_equal(extend_to_black(outline, np.repeat(field[..., None], 3, axis=2)), outline)


@pytest.mark.parametrize("change", CHANGES)
def test_outlines_are_found_when_the_photograph_is(change: str, outlined: list[Outlined]) -> None:
    """Every second photograph; they are of both kinds, single ones and mosaics."""
    alter = CHANGES[change]
    scores = {e.name: score(uwf_retina_mask(alter(e.image)), alter(e.retina), alter(e.ignored)) for e in outlined[::2]}
    assert min(scores.values()) >= 0.88, scores
    assert np.mean(list(scores.values())) >= (0.93 if change in ONE_CHANNEL else 0.94), scores


@pytest.mark.parametrize("above", [True, False])
def test_a_line_of_text_beside_the_photograph_changes_nothing(above: bool, outlined: list[Outlined]) -> None:
    for example in outlined:
        height, width = example.retina.shape
        band = np.zeros((60, width, 3), np.uint8)
        cv2.putText(
            band, "SAMPLE, PATIENT OD 2020-01-02 ID 0001234", (4, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255,) * 3, 2
        )
        assert (band.max(axis=(1, 2)) > 0).sum() > 15  # rows of writing
        photograph = slice(60, None) if above else slice(0, height)
        mask = uwf_retina_mask(np.vstack([band, example.image] if above else [example.image, band]))
        assert score(mask[photograph], example.found, np.zeros_like(example.found)) >= 0.97, example.name
        assert mask.sum() - mask[photograph].sum() <= 0.01 * mask.sum(), example.name


def test_every_mask_is_one_component_without_holes(outlined: list[Outlined]) -> None:
    for example in outlined:
        assert example.found.shape == example.image.shape[:2]
        assert_one_component_without_holes(example.found)


def test_the_same_image_gives_the_same_mask_and_stays_unchanged(outlined: list[Outlined]) -> None:
    image = outlined[0].image.copy()
    first = uwf_retina_mask(image)
    assert np.array_equal(image, outlined[0].image)
    assert np.array_equal(first, uwf_retina_mask(np.asfortranarray(image)))


@pytest.mark.parametrize("longest_side", [200, 400, 1536])
def test_the_mask_does_not_depend_on_the_size(longest_side: int, outlined: list[Outlined]) -> None:
    agreements = []
    for example in outlined:
        scale = longest_side / max(example.image.shape[:2])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        other = cv2.resize(example.image, None, fx=scale, fy=scale, interpolation=interpolation)
        height, width = example.retina.shape
        mask = np.asarray(cv2.resize(uwf_retina_mask(np.asarray(other, np.uint8)), (width, height)) > 127)
        reference = example.found > 0
        agreements.append((mask & reference).sum() / (mask | reference).sum())
    assert min(agreements) >= 0.93, agreements
    assert np.mean(agreements) >= 0.97, agreements


def test_a_lid_from_another_photograph_is_left_out(outlined: list[Outlined]) -> None:
    """The lids, lashes and rim of one photograph around the retina of another, at the latter's brightness."""
    mosaics = [e for e in outlined if e.name.startswith("UWF-mosaic")]
    scores = {}
    for inner, outer in zip(mosaics, mosaics[1:] + mosaics[:1], strict=True):
        height, width = outer.retina.shape
        image = cv2.resize(inner.image, (width, height)).astype(np.float64)
        retina = cv2.resize(inner.retina, (width, height), interpolation=cv2.INTER_NEAREST)
        ignored = cv2.resize(inner.ignored, (width, height), interpolation=cv2.INTER_NEAREST) | outer.ignored
        shared = (retina > 0) & (outer.retina > 0)
        gain = [np.median(image[shared][:, c]) / np.median(outer.image[shared][:, c]) for c in (0, 1)]
        surround = np.clip(outer.image * [*gain, 1], 0, 255)
        weight = cv2.GaussianBlur((outer.retina > 0).astype(np.float64), (0, 0), 2.5)[..., None]
        composed = np.asarray(image * weight + surround * (1 - weight), dtype=np.uint8)
        scores[inner.name, outer.name] = score(uwf_retina_mask(composed), shared.astype(np.uint8), ignored)
    assert min(scores.values()) >= 0.90, scores


def synthetic_eye(height: int = 480, width: int = 620) -> tuple[Image, Image]:
    """A textured red-brown ellipse between bright greenish lids, with a black rim; and its mask."""
    generator = np.random.default_rng(7)
    rows, columns = np.mgrid[:height, :width]
    retina = np.hypot((columns - width / 2) / (0.45 * width), (rows - height / 2) / (0.4 * height)) < 1
    rim = np.hypot((columns - width / 2) / (0.5 * width), (rows - height / 2) / (0.62 * height)) > 1
    texture = cv2.GaussianBlur(generator.normal(0, 40, (height, width)), (0, 0), 3)
    fundus = np.stack([100 + texture, 60 + texture, np.zeros_like(texture)], axis=-1)
    image = np.where(retina[..., None], fundus, np.array([170.0, 180.0, 10.0]))
    image[rim & ~retina] = 4
    return np.clip(image, 0, 255).astype(np.uint8), (retina * 255).astype(np.uint8)


def test_an_ellipse_between_lids_is_found_without_real_images() -> None:
    image, retina = synthetic_eye()
    mask = uwf_retina_mask(image)
    assert_one_component_without_holes(mask)
    assert score(mask, retina, np.zeros_like(retina)) >= 0.96


def eye_with_a_straight_lid(degrees: float, distance: float) -> tuple[Image, Image, Image]:
    """A textured fundus on black, cut by a lid hardly brighter than it; the retina, and the lid."""
    height, width = 480, 620
    rows, columns = np.mgrid[:height, :width]
    x, y = (columns + 0.5) / width * 2 - 1, (rows + 0.5) / height * 2 - 1
    field = np.hypot(x, y) < 1.05
    lid = x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees)) > distance
    texture = cv2.GaussianBlur(np.random.default_rng(7).normal(0, 60, (height, width)), (0, 0), 3)
    fundus = np.stack([110 + texture, 75 + texture, np.zeros_like(texture)], axis=-1)
    image = np.where(lid[..., None], np.array([120.0, 110.0, 5.0]), fundus)
    image[~field] = 4
    blurred = np.clip(cv2.GaussianBlur(image, (0, 0), 2), 0, 255).astype(np.uint8)
    return blurred, (field & ~lid).astype(np.uint8), (field & lid).astype(np.uint8)


@pytest.mark.parametrize("distance", [0.5, 0.6, 0.7, 0.8])
@pytest.mark.parametrize("degrees", [20, 50, 200])
def test_a_straight_lid_is_followed_where_it_crosses_the_rays_at_a_slant(degrees: float, distance: float) -> None:
    image, retina, lid = eye_with_a_straight_lid(degrees, distance)
    mask = uwf_retina_mask(image)
    assert score(mask, retina, np.zeros_like(retina)) >= 0.985
    assert (mask[lid > 0] > 0).mean() <= 0.02


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 400), percent=st.sampled_from([0, 10, 50, 90, 99.5, 100]))
def test_percentiles_of_levels_are_those_of_numpy(seed: int, size: int, percent: float) -> None:
    generator = np.random.default_rng(seed)
    levels = generator.integers(0, generator.integers(1, 257), size, dtype=np.uint8)
    assert percentile_of_levels(levels, percent) == pytest.approx(float(np.percentile(levels, percent)), abs=1e-9)


def test_generated_images_are_outlined_and_lose_no_retina() -> None:
    """Their lids may be as dull as the fundus and have soft shadows for an edge: some are taken for retina."""
    scores, kept = {}, {}
    for seed in range(200, 208):
        sample = render_ultra_widefield(seed, 768, 604)
        mask = uwf_retina_mask(sample.image_rgb)
        scores[seed] = score(mask, (sample.retina_mask > 0).astype(np.uint8), np.zeros_like(mask))
        kept[seed] = (mask[sample.retina_mask > 0] > 0).mean()
    assert np.mean(list(scores.values())) >= 0.95, scores
    assert min(kept.values()) >= 0.93, kept


def test_a_retina_that_fills_the_frame_is_kept_whole() -> None:
    image, _ = synthetic_eye(960, 1240)
    middle = np.ascontiguousarray(image[330:630, 420:820])
    assert (uwf_retina_mask(middle) > 0).mean() >= 0.99


def test_a_black_image_has_no_retina() -> None:
    assert not uwf_retina_mask(np.zeros((300, 400, 3), np.uint8)).any()


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (40, 900), (900, 40), (600, 768)])
@pytest.mark.parametrize("content", ["grey", "white", "noise", "half black", "checkered"])
@pytest.mark.filterwarnings("error")
def test_content_without_a_retina_gives_a_mask_and_no_error(shape: tuple[int, int], content: str) -> None:
    image = np.full((*shape, 3), 255 if content == "white" else 120, np.uint8)
    if content == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    elif content == "half black":
        image[: shape[0] // 2] = 0
    elif content == "checkered":
        image[np.indices(shape).sum(axis=0) % 2 == 0] = 0
    mask = uwf_retina_mask(image)
    assert mask.shape == shape
    assert_one_component_without_holes(mask)


@settings(max_examples=25)
@given(height=st.integers(32, 160), width=st.integers(32, 160), seed=st.integers(0, 10_000), n_discs=st.integers(0, 12))
def test_random_discs_give_a_mask_and_no_error(height: int, width: int, seed: int, n_discs: int) -> None:
    generator = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    for _ in range(n_discs):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        colour = tuple(int(level) for level in generator.integers(0, 256, 3))
        cv2.circle(image, centre, int(generator.integers(1, 80)), colour, -1)
    mask = uwf_retina_mask(image)
    assert mask.shape == (height, width)
    if mask.any():
        assert_one_component_without_holes(mask)


@pytest.mark.parametrize(
    "image",
    [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 3), np.float32)],
    ids=["grey", "with alpha", "float"],
)
def test_other_arrays_are_refused_with_what_was_found(image: Image) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB image \(H, W, 3\) uint8, found \(64, 64"):
        uwf_retina_mask(image)


def test_a_narrow_strip_beside_black_is_taken_whole_and_a_wide_one_not_at_all() -> None:
    field, outline = np.zeros((2, 1000, 1000), np.uint8)
    cv2.circle(field, (500, 500), 400, 255, -1)
    # 5 px inside the field on the left, 35 px on the right: narrow, then wider than any penumbra.
    cv2.circle(outline, (485, 500), 380, 255, -1)
    image = np.repeat(field[..., None] // 2, 3, axis=2)

    extended = extend_to_black(outline, image)

    assert extended[500, 101] == 255
    assert extended[500, 875] == 0
    assert not np.any((extended > 0) & (field == 0))
    contours, _ = cv2.findContours(extended, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    assert len(contours) == 1
    assert cv2.arcLength(contours[0], closed=True) < 1.05 * cv2.arcLength(
        cv2.findContours(field, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0], closed=True
    )
