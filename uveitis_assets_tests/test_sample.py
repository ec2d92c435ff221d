"""The sample generator: its truth agrees with its pixels, its files with the layouts, and its bytes with its seed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from uveitis_assets.sample import (
    LESION_FOLDERS,
    UltraWidefieldSample,
    render_regular_fundus,
    render_ultra_widefield,
    write_fgadr,
    write_many_small,
    write_sample,
    write_uwf700,
)
from uveitis_assets.sample.__main__ import main
from uveitis_assets.sample.lesions import smallest_rotated_box
from uveitis_assets_tests.patience import patience


def files_of(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def box_mask(corners: np.ndarray, height: int, width: int, grow: float = 0.0) -> np.ndarray:
    """Pixels inside a box by the half-plane test on pixel centres; ``grow`` widens it by pixels."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    inside = np.ones((height, width), bool)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = (end - start) / np.linalg.norm(end - start)
        inside &= along[0] * (y - start[1]) - along[1] * (x - start[0]) >= -grow
    return inside


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_sample(root, n_uwf=24, n_fgadr=4, seed=0, uwf_size=(220, 173), fgadr_size=160, workers=2)
    return root


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    write_sample(tmp_path / "here", n_uwf=3, n_fgadr=2, seed=5, uwf_size=(240, 189), fgadr_size=160, workers=2)
    write_many_small(tmp_path / "here/small", 4, 5, workers=2)
    command = [sys.executable, "-m", "uveitis_assets.sample", "--out", str(tmp_path / "there"), "--seed", "5"]
    command += ["--n-uwf", "3", "--n-fgadr", "2", "--n-small", "4", "--uwf-size", "240x189", "--fgadr-size", "160"]
    subprocess.run([*command, "--workers", "1"], check=True, capture_output=True, timeout=patience(60))
    here = files_of(tmp_path / "here")
    assert here == files_of(tmp_path / "there")
    assert len(here) > 10


def test_writing_again_changes_nothing_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_uwf700(tmp_path, 3, 1, 220, 173)
    first = files_of(tmp_path)
    write_uwf700(tmp_path, 3, 1, 220, 173)
    assert files_of(tmp_path) == first
    assert {Path(name).suffix for name in first} == {".jpg", ".txt"}


def test_an_item_does_not_depend_on_how_many_are_written(tmp_path: Path) -> None:
    write_fgadr(tmp_path / "two", 2, 9, 160)
    write_fgadr(tmp_path / "three", 3, 9, 160)
    assert files_of(tmp_path / "two").items() < files_of(tmp_path / "three").items()


def test_different_seeds_give_different_images() -> None:
    one, other = (render_ultra_widefield(seed, 320, 252) for seed in (1, 2))
    assert np.abs(one.image_rgb.astype(int) - other.image_rgb).mean() > 5
    assert (one.retina_mask != other.retina_mask).mean() > 0.01
    one_fundus, other_fundus = (render_regular_fundus(seed, 200) for seed in (1, 2))
    assert np.abs(one_fundus.image_rgb.astype(int) - other_fundus.image_rgb).mean() > 5


def drawn_box_mask(changed: np.ndarray) -> np.ndarray:
    """Pixels of the smallest rotated rectangle around the changed pixels' squares."""
    rows, columns = np.nonzero(changed)
    squares = np.concatenate([np.stack([columns + dx, rows + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    corners = cv2.boxPoints(cv2.minAreaRect(squares.astype(np.float32))).astype(float)
    return box_mask(corners, *changed.shape) | box_mask(corners[::-1], *changed.shape)


# Two classes of one place (the disc, the macula) cannot share an image.
CLASS_GROUPS = [(1, 3, 8, 10), (5, 7, 12, 13), (9, 14, 16, 18), (4, 6, 15, 19), (2, 11), (17, 20)]


def test_the_class_groups_name_every_class() -> None:
    assert sorted(class_id for group in CLASS_GROUPS for class_id in group) == list(range(1, 21))


@pytest.mark.parametrize("group", CLASS_GROUPS, ids=str)
def test_boxes_of_every_class_fit_the_pixels_the_lesions_change(group: tuple[int, ...]) -> None:
    width, height = 720, 567
    for seed in range(60, 80):
        sick = render_ultra_widefield(seed, width, height, classes=group)
        if {class_id for class_id, _ in sick.objects} == set(group):
            break
    else:
        pytest.fail(f"no image out of 20 shows all of the classes {group}")
    well = render_ultra_widefield(seed, width, height, classes=group, draw_lesions=False)
    assert well.objects == ()
    assert (well.retina_mask == sick.retina_mask).all()
    change = np.abs(sick.image_rgb.astype(np.float32) - well.image_rgb).max(axis=2)
    told = np.zeros((height, width), bool)
    for class_id, corners in sick.objects:
        near = box_mask(corners, height, width, grow=3)
        changed = near & (change > 0.25 * np.percentile(change[near], 99))
        drawn, label = drawn_box_mask(changed), box_mask(corners, height, width)
        assert (label & drawn).sum() > 0.6 * (label | drawn).sum(), class_id
        told |= box_mask(corners, height, width, grow=0.15 * np.linalg.norm(np.ptp(corners, axis=0)) + 3)
    # Nothing is drawn that no box tells of.
    assert change[~told].max() < 12


def test_boxes_lie_in_the_image_and_on_the_retina_in_clockwise_order() -> None:
    count = 0
    for seed in range(5):
        sample = render_ultra_widefield(seed, 700, 551)
        for _, corners in sample.objects:
            count += 1
            assert corners.min() >= 0
            assert (corners <= [700, 551]).all()
            inside = box_mask(corners, 551, 700)  # empty unless the corners run clockwise on the screen
            assert inside.any()
            assert sample.retina_mask[inside].all()
    assert count >= 16


def test_the_smallest_box_of_a_tilted_bar_is_the_bar() -> None:
    angle, bar = np.deg2rad(30), np.zeros((120, 160), np.uint8)
    axis, normal = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    centre = np.array([80.0, 60.0])
    y, x = np.mgrid[0:120, 0:160] + 0.5
    offset = np.stack([x - centre[0], y - centre[1]], axis=-1)
    bar = (np.abs(offset @ axis) < 40) & (np.abs(offset @ normal) < 10)
    corners = smallest_rotated_box(bar, 1000, 2000)
    sides = sorted(np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1))
    assert sides == pytest.approx([20, 20, 80, 80], abs=2.0)
    assert corners.mean(axis=0) == pytest.approx([1080, 2060], abs=0.6)


def test_the_box_of_one_pixel_is_that_pixel() -> None:
    support = np.zeros((9, 9), bool)
    support[4, 6] = True
    corners = smallest_rotated_box(support, 10, 20)
    assert sorted(map(tuple, corners.round(4))) == [(16, 24), (16, 25), (17, 24), (17, 25)]


@pytest.fixture(scope="module")
def healthy_eyes() -> list[UltraWidefieldSample]:
    return [render_ultra_widefield(seed, 400, 315, classes=()) for seed in range(6)]


def test_the_retina_is_the_lit_coloured_field_without_black_corners(healthy_eyes: list[UltraWidefieldSample]) -> None:
    for sample in healthy_eyes:
        share = sample.retina_mask.mean()
        assert 0.4 < share < 0.97
        black = sample.image_rgb.max(axis=2) <= 4
        assert (black & sample.retina_mask).mean() < 0.002
        assert sample.objects == ()
        components, _ = cv2.connectedComponents(sample.retina_mask.astype(np.uint8))
        assert components == 2


def test_lids_make_brightness_alone_a_poor_retina_mask(healthy_eyes: list[UltraWidefieldSample]) -> None:
    overlaps = []
    for sample in healthy_eyes:
        bright = sample.image_rgb.max(axis=2) > 25
        overlaps.append((bright & sample.retina_mask).sum() / (bright | sample.retina_mask).sum())
    assert np.mean(overlaps) < 0.93


def test_labels_parse_within_the_image_and_the_class_range(demo: Path) -> None:
    labels = sorted((demo / "uwf-700/Labels/Uveitis").glob("*.txt"))
    objects = 0
    for path in labels:
        for line in path.read_text(encoding="ascii").splitlines():
            fields = line.split(" ")
            assert len(fields) == 9
            assert 1 <= int(fields[0]) <= 20
            assert all(len(field.split(".")[1]) == 6 for field in fields[1:])
            values = np.array(fields[1:], float)
            assert values.min() >= 0
            assert values.max() <= 1
            objects += 1
    assert objects > 30


def test_the_demo_shows_many_classes_a_negative_and_an_unlabelled_image(demo: Path) -> None:
    images = {path.stem for path in (demo / "uwf-700/Images/Uveitis").glob("*.jpg")}
    labels = {path.stem: path.read_text() for path in (demo / "uwf-700/Labels/Uveitis").glob("*.txt")}
    assert len(images) == 16
    assert images - labels.keys() == {"Uveitis-003"}
    assert [stem for stem, text in labels.items() if not text] == ["Uveitis-002"]
    classes = {int(line.split()[0]) for text in labels.values() for line in text.splitlines()}
    assert len(classes) >= 12
    assert {path.name for path in (demo / "uwf-700/Images").iterdir()} == {"Uveitis", "Healthy", "RVO"}
    assert not (demo / "uwf-700/Labels/Healthy").exists()


def test_fgadr_masks_have_the_image_name_and_size(demo: Path) -> None:
    images = sorted((demo / "fgadr/Original_Images").glob("*.png"))
    assert [path.name for path in images] == ["0001_1.png", "0001_2.png", "0001_3.png", "0002_1.png"]
    missing = empty = 0
    for image in images:
        for folder in LESION_FOLDERS:
            path = demo / "fgadr" / folder / image.name
            if not path.exists():
                missing += 1
                continue
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert mask.shape == (160, 160)
            assert set(np.unique(mask)) <= {0, 255}
            empty += not mask.any()
    assert missing > 0
    assert empty > 0


def test_fgadr_masks_cover_the_pixels_that_lesions_change() -> None:
    seen = set()
    for seed in (10, 20, 13):
        sick, well = render_regular_fundus(seed, 500), render_regular_fundus(seed, 500, draw_lesions=False)
        change = np.abs(sick.image_rgb.astype(np.float32) - well.image_rgb).max(axis=2)
        union = np.zeros((500, 500), np.uint8)
        for folder, mask in sick.lesion_masks.items():
            assert not (mask & ~sick.fov_mask).any()
            if mask.any():
                seen.add(folder)
                # Lesions on lesions and on vessels change little; most of each mask must show.
                assert np.median(change[mask]) > 12, folder
            union |= mask.astype(np.uint8)
        far = cv2.dilate(union, np.ones((9, 9), np.uint8)) == 0
        assert change[far].max() < 40
        assert change[far].mean() < 0.5
        assert not any(mask.any() for mask in well.lesion_masks.values())
    assert seen == set(LESION_FOLDERS)


def test_microaneurysms_are_3_to_10_pixels() -> None:
    sizes: list[int] = []
    for seed in range(4):
        mask = render_regular_fundus(seed, 700).lesion_masks["Microaneurysms_Masks"].astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        sizes += [int(max(stats[i, cv2.CC_STAT_WIDTH], stats[i, cv2.CC_STAT_HEIGHT])) for i in range(1, count)]
    assert len(sizes) > 20
    assert np.mean([3 <= size <= 10 for size in sizes]) > 0.95


def test_the_field_of_view_is_lit_and_its_surround_black() -> None:
    for seed in range(4):
        sample = render_regular_fundus(seed, 400)
        outside = cv2.dilate(sample.fov_mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0
        assert sample.image_rgb[outside].max() < 12
        core = cv2.erode(sample.fov_mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert (sample.image_rgb[core].max(axis=1) > 25).mean() > 0.999
        assert 0.5 < sample.fov_mask.mean() < 0.8


def test_many_small_images_are_distinct_and_readable(tmp_path: Path) -> None:
    paths = write_many_small(tmp_path, 1100, 3)
    assert len({path.relative_to(tmp_path).parts[0] for path in paths}) == 2
    assert {path.stem.split("_")[1] for path in paths} == {"left", "right"}
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}) == 1100
    image = cv2.imread(str(paths[-1]))
    assert image.shape == (48, 64, 3)
    assert image.mean() > 20


def test_the_written_image_is_the_rendered_one_in_rgb(tmp_path: Path) -> None:
    [path] = write_fgadr(tmp_path, 1, 4, 200)
    stored = cv2.imread(str(path))[..., ::-1].astype(float)
    inside = stored.max(axis=2) > 60
    assert stored[inside][:, 0].mean() > 1.3 * stored[inside][:, 2].mean()


def test_every_written_image_is_reported(tmp_path: Path) -> None:
    reported: list[Path] = []
    written = write_uwf700(tmp_path, 4, 0, 240, 189, workers=2, on_written=reported.append)
    assert sorted(reported) == sorted(written)
    assert all(path.is_file() for path in written)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: render_ultra_widefield(0, 100, 80), "at least 200 x 150 pixels, found 100 x 80"),
        (lambda: render_ultra_widefield(0, 300, 236, classes=[21]), "expected 1..20, found 21"),
        (lambda: render_regular_fundus(0, 64), "at least 128 pixels, found 64"),
    ],
)
def test_impossible_requests_say_what_is_expected(call, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        call()


def test_the_command_line_refuses_a_malformed_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", "unused", "--uwf-size", "huge"])
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().err
