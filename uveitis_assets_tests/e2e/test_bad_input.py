"""One landing with every kind of bad input through the whole lane: the good end in tiles and COCO, the bad in lists."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from uveitis_assets.components.fundus.lanes import load_lanes
from uveitis_assets.definitions import defs
from uveitis_assets.sample import render_regular_fundus, write_fgadr
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.components.running_platform import Platform, read_coco, use

pytestmark = pytest.mark.e2e

BOX = "4 0.3 0.3 0.5 0.3 0.5 0.5 0.3 0.5\n"
GOOD = [
    "plain.jpg",
    "UPPER.JPG",
    "with space.jpg",
    "with, comma.png",
    "Größe-眼底.jpg",
    "semi;colon 'quoted' \"double\".png",
    "picture.tif",
    "picture.bmp",
    "turned by exif.jpg",
    "percent%20.jpg",
]


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Content and expected reason of each bad file."""
    picture = Image.fromarray(render_regular_fundus(9, 160).image_rgb)
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    deep = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257)
    frames = {"save_all": True, "append_images": [picture.rotate(90)]}
    black = Image.new("RGB", (160, 160))
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 0xFF
    return {
        "zero.jpg": (b"", "empty_file"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[:-40], "truncated"),
        "damaged.png": (bytes(damaged), "truncated"),
        "really a png.jpg": (png, "wrong_extension"),
        "really a gif.jpg": (encoded(picture.convert("P"), "GIF"), "wrong_extension"),
        "text.jpg": (b"not an image at all\n" * 50, "not_an_image"),
        "cmyk.jpg": (encoded(picture.convert("CMYK"), "JPEG"), "unsupported_color_mode"),
        "sixteen bits.png": (encoded(deep, "PNG"), "unsupported_bit_depth"),
        "grey.jpg": (encoded(picture.convert("L"), "JPEG"), "unsupported_color_mode"),
        "palette.png": (encoded(picture.convert("P"), "PNG"), "unsupported_color_mode"),
        "alpha.png": (encoded(picture.convert("RGBA"), "PNG"), "alpha_channel"),
        "animated.png": (encoded(picture, "PNG", **frames), "animated"),
        "pages.tif": (encoded(picture, "TIFF", **frames), "animated"),
        "one pixel.png": (encoded(picture.resize((1, 1)), "PNG"), "too_small"),
        "bomb.png": (png_header(60_000, 60_000), "too_large"),
        "black.png": (encoded(black, "PNG"), "roi_not_found"),
    }


def good_file(name: str, number: int) -> bytes:
    picture = Image.fromarray(render_regular_fundus(100 + number, 160).image_rgb)
    if "exif" in name:
        exif = Image.Exif()
        exif[0x0112] = 6
        return encoded(picture, "JPEG", exif=exif)
    kinds = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".bmp": "BMP"}
    return encoded(picture, kinds[Path(name).suffix.lower()])


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return defs()


@pytest.fixture
def platform(definitions: dg.Definitions, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> Platform:
    use(store, monkeypatch)
    return Platform(definitions, load_lanes(), store)


def findings(result: dg.ExecuteInProcessResult, check: str) -> str:
    """What the check listed, over all partitions of the run."""
    evaluations = [one for one in result.get_asset_check_evaluations() if one.check_name == check]
    assert evaluations
    return "\n".join(str(one.metadata["findings"].value) for one in evaluations)


def coco_image_ids(platform: Platform, lane: str, *, tiles: bool = False) -> set[str]:
    return {
        image["image_id"]
        for split in ("train", "val", "test")
        for image in read_coco(platform.store, lane, split, tiles=tiles)["images"]
    }


def place(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def test_every_good_image_ends_in_tiles_and_coco_and_every_bad_one_is_listed_with_its_reason(
    platform: Platform, tmp_path: Path
) -> None:
    landing = platform.store.raw / "uwf-700"
    images, labels = landing / "Images" / "Uveitis", landing / "Labels" / "Uveitis"
    for number, name in enumerate(GOOD):
        place(images, name, good_file(name, number))
        place(labels, f"{Path(name).stem}.txt", BOX.encode())
    expected = {}
    for name, (data, reason) in bad_files().items():
        place(images, name, data)
        expected[f"uwf700::{Path(name).stem}"] = reason
    # Two of the bad share a stem with another file: the second in the order of paths gets a longer id.
    place(tmp_path, "outside.jpg", good_file("plain.jpg", 50))
    (images / "broken link.jpg").symlink_to("nowhere.jpg")
    (images / "leads outside.jpg").symlink_to(tmp_path / "outside.jpg")
    (images / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(images / "pipe.jpg")
    (images / "a folder.jpg").mkdir()
    expected |= {
        "uwf700::broken link": "broken_symlink",
        "uwf700::leads outside": "escapes_root",
        "uwf700::loop": "broken_symlink",
        "uwf700::pipe": "unreadable",
    }
    if os.geteuid() != 0:  # the superuser reads everything
        place(images, "forbidden.jpg", good_file("plain.jpg", 51))
        (images / "forbidden.jpg").chmod(0)
        expected["uwf700::forbidden"] = "unreadable"
    (landing / "Images" / "linked folder").symlink_to(tmp_path)
    vanishing, overwritten = images / "vanishes.jpg", images / "overwritten.jpg"
    for number, path in enumerate((vanishing, overwritten)):
        place(images, path.name, good_file("plain.jpg", 60 + number))

    report = platform.register("uwf700")
    vanishing.unlink()
    overwritten.write_bytes(good_file("plain.jpg", 70))
    expected |= {"uwf700::vanishes": "missing", "uwf700::overwritten": "changed_since_registration"}
    assert "escapes_root" in [problem.reason for problem in report.problems]

    result = platform.run("uwf700")
    assert result.success
    labels_result = platform.run_labels("uwf700", overlays=True)
    assert labels_result.success

    good = {f"uwf700::{Path(name).stem}" for name in GOOD if name != "picture.tif"}
    good.add(next(name for name in ids(platform) if name.startswith("uwf700::picture~")))
    expected |= {name: expected["uwf700::cut"] for name in ids(platform) if name.startswith("uwf700::cut~")}
    assert len(good) == len(GOOD)
    for name in good:
        key = artefact_key(name)
        assert platform.store.roi_mask(key).is_file(), name
        assert platform.store.tile(key, "tile_000").is_file(), name
    # Both pictures have the stem of the one label file picture.txt, so it cannot be assigned to either.
    labelled = {name for name in good if not name.startswith("uwf700::picture")}
    assert len(labelled) == len(good) - 2
    assert coco_image_ids(platform, "uwf700") == labelled
    assert coco_image_ids(platform, "uwf700", tiles=True) == labelled
    assert "Labels/Uveitis/picture.txt: ambiguous_label: " in findings(result, "manifest_integrity")

    stage = platform.metadata("uwf700/tiles", "b00001")
    assert stage["n_done"] == len(good)
    assert stage["n_quarantined"] == len(expected)
    listed = {line.removeprefix("- ") for line in stage["quarantined"].splitlines()}
    for name, reason in expected.items():
        assert any(line.startswith(f"{name}: {reason}: ") for line in listed), (name, reason)
        assert f"{name}: {reason}: " in findings(result, "roi_plausibility")
        if reason not in ("roi_not_found", "changed_since_registration") and name != "uwf700::damaged":
            assert f"{name}: {reason}: " in platform.metadata("uwf700/manifest", "b00001")["quarantined"]
            assert f"{name}: {reason}: " in findings(result, "manifest_integrity")
    assert "linked folder: escapes_root" in findings(result, "manifest_integrity")
    assert not {artefact_key(name) for name in expected} & {
        path.stem for path in (platform.store.root / "preproc").rglob("*.*")
    }


def ids(platform: Platform) -> set[str]:
    manifest = platform.store.manifest_export("uwf700", "jsonl").read_text().splitlines()
    return {json.loads(line)["image_id"] for line in manifest}


BAD_LABELS = {
    "eight values": ("4 0.3 0.3 0.5 0.3 0.5 0.5 0.3\n", ":1: found 8 values, expected 9"),
    "nan": (BOX + "4 0.3 nan 0.5 0.3 0.5 0.5 0.3 0.5\n", ":2: found nan, expected a finite number"),
    "infinite": ("4 0.3 inf 0.5 0.3 0.5 0.5 0.3 0.5\n", ":1: found inf"),
    "outside": ("4 0.3 0.3 1.5 0.3 1.5 0.5 0.3 0.5\n", ":1: found the coordinate 1.5"),
    "pixels": ("4 30 30 50 30 50 50 30 50\n", ":1: found the coordinate 30"),
    "unknown class": ("99 0.3 0.3 0.5 0.3 0.5 0.5 0.3 0.5\n", ":1:"),
    "words": ("a box somewhere in the middle of the retina\n", ":1:"),
    "latin": (b"4 0.3 0.3 0.5 0.3 0.5 0.5 0.3 0.5 \xe9\n", ":1: found byte 0xe9"),
}


def test_label_files_that_cannot_be_believed_are_listed_and_set_only_their_image_aside(platform: Platform) -> None:
    landing = platform.store.raw / "uwf-700"
    images, labels = landing / "Images" / "Uveitis", landing / "Labels" / "Uveitis"
    texts: dict[str, str | bytes | None] = {"boxes": BOX, "no lesions": "", "windows": "\ufeff" + BOX.strip() + "\r\n"}
    texts |= {name: text for name, (text, _) in BAD_LABELS.items()} | {"no label": None}
    for number, (name, text) in enumerate(texts.items()):
        place(images, f"{name}.jpg", good_file("plain.jpg", number))
        if text is not None:
            place(labels, f"{name}.txt", text if isinstance(text, bytes) else text.encode())
    (labels / "leads outside.txt").symlink_to("/etc/hostname")
    place(images, "leads outside.jpg", good_file("plain.jpg", 90))
    place(labels, "nobody.txt", BOX.encode())
    platform.register("uwf700")
    lane_result = platform.run("uwf700")
    assert lane_result.success
    result = platform.run_labels("uwf700")
    assert result.success
    assert coco_image_ids(platform, "uwf700") == {"uwf700::boxes", "uwf700::no lesions", "uwf700::windows"}
    bad = {}
    for split in ("train", "val", "test"):
        metadata = platform.metadata("uwf700/coco_labels", f"fold0|{split}")
        assert metadata["n_bad_labels"] == len(metadata["bad_labels"])
        bad |= metadata["bad_labels"]
    assert bad.keys() == {f"uwf700::{name}" for name in (*BAD_LABELS, "leads outside")}
    shown = findings(result, "label_sanity")
    for name, (_, message) in BAD_LABELS.items():
        assert f"Labels/Uveitis/{name}.txt{message}" in bad[f"uwf700::{name}"]
        assert f"uwf700::{name}: " in shown
    assert "label_without_image" in findings(lane_result, "manifest_integrity")


def test_lesion_masks_of_other_sizes_are_listed_and_other_formats_are_read(platform: Platform) -> None:
    write_fgadr(platform.store.raw, 6, 3, 160, workers=1)
    masks = platform.store.raw / "fgadr" / "Hemohedge_Masks"
    assert masks.is_dir()
    mask = np.zeros((160, 160), np.uint8)
    mask[60:80, 60:90] = 1
    formats = {
        "0001_1": Image.fromarray(mask * 255),
        "0001_2": Image.fromarray(mask.astype(np.uint16) * 65535),
        "0001_3": Image.fromarray(np.dstack([mask * 255] * 3 + [np.full_like(mask, 255)])),
        "0002_1": Image.fromarray(mask).convert("P"),
        "0002_2": Image.fromarray(mask[:100, :100] * 255),
    }
    formats["0002_1"].putpalette([0, 0, 0, 255, 255, 255])
    for folder in (platform.store.raw / "fgadr").glob("*_Masks"):
        for path in folder.iterdir():
            path.unlink()
    for stem, picture in formats.items():
        picture.save(masks / f"{stem}.png")
    (masks / "0002_3.png").write_bytes(b"not a mask")
    platform.register("fgadr")
    assert platform.run("fgadr").success
    result = platform.run_labels("fgadr")
    assert result.success
    boxes = {
        (image["image_id"], tuple(round(value, 3) for value in annotation["bbox"]))
        for split in ("train", "val", "test")
        for coco in [read_coco(platform.store, "fgadr", split)]
        for image in coco["images"]
        for annotation in coco["annotations"]
        if annotation["image_id"] == image["id"]
    }
    assert sorted(name for name, _ in boxes) == [f"fgadr::{stem}" for stem in list(formats)[:4]]
    assert {round(box[2] / box[3], 2) for _, box in boxes} == {1.5}
    shown = findings(result, "label_sanity")
    assert "fgadr::0002_2: " in shown
    assert "fgadr::0002_3: " in shown


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (b"picture,level\n1_left,2\n", "missing_columns"),
        ("image,level\n1_left,2\nGr\u00f6\u00dfe_left,1\n".encode("utf-16"), "trainLabels.csv"),
        (b"image,level\n1_left,2\n2_left,many\n", "trainLabels.csv:3"),
        (b"image,level\n1_left,2\n../../secret,1\n", "trainLabels.csv"),
    ],
    ids=["missing column", "other encoding", "bad cell", "path out of the folder"],
)
def test_a_bad_table_costs_grades_and_no_image_and_is_listed(platform: Platform, table: bytes, problem: str) -> None:
    for number in (1, 2):
        place(platform.store.raw / "eyepacs" / "train", f"{number}_left.jpeg", good_file("plain.jpg", number))
    place(platform.store.raw / "eyepacs", "trainLabels.csv", table)
    platform.register("eyepacs")
    result = platform.run("eyepacs")
    assert result.success
    assert platform.metadata("eyepacs/tiles", "b00001")["n_done"] == 2
    assert problem in platform.metadata("eyepacs/manifest", "b00001")["landing_problems"]
    assert problem in findings(result, "manifest_integrity")
