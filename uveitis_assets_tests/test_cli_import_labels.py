"""``uveitis-assets import-labels``, from foreign files to the lane's COCO labels."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets.components.fundus.lanes import load_lanes
from uveitis_assets.definitions import defs
from uveitis_assets.sample import write_uwf700
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.components.running_platform import Platform, use


def command(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["import-labels", *arguments])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.output


@pytest.fixture
def landed(store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Three ultra-widefield photographs without labels."""
    use(store, monkeypatch)
    monkeypatch.setenv("UVEITIS_DATA", str(store.root))
    monkeypatch.setenv("UVEITIS_RAW", str(store.raw))
    write_uwf700(store.raw, 3, 3, 320, 252, workers=1)
    shutil.rmtree(store.raw / "uwf-700" / "Labels")
    return Platform(defs(), load_lanes(), store)


def test_imported_boxes_are_those_of_the_coco_files(landed: Platform, tmp_path: Path) -> None:
    images = sorted((landed.store.raw / "uwf-700" / "Images").glob("*/*.jpg"))
    folder = tmp_path / "yolo"
    folder.mkdir()
    for number, image in enumerate(images):
        rows = [f"{3 + k} {0.4 + 0.05 * k} 0.5 0.1 0.08\n" for k in range(number)]
        (folder / f"{image.stem}.txt").write_text("".join(rows))
    options = (str(folder), "--format", "yolo", "--units", "share", "--first-class", "0")
    assert "would write 3 label files of 3 images with 3 lesions" in command("uwf700", *options, "--dry-run")
    assert not (landed.store.raw / "uwf-700" / "Labels").exists()
    output = command("uwf700", *options)
    assert "uwf700: wrote 3 label files of 3 images with 3 lesions; 0 rows left out as asked, 0 refused" in output
    assert "next: uveitis-assets register uwf700" in output
    assert "--replace" in command("uwf700", *options, code=1)

    landed.register("uwf700")
    assert landed.run("uwf700").success
    assert landed.run_labels("uwf700", "fold0|train", "fold0|test").success
    seen: dict[str, list[tuple[int, np.ndarray]]] = {}
    for split in ("train", "val", "test"):
        coco = read_json(landed.store.coco_file("uwf700", split, 0, tiles=False))
        names = {image["id"]: image["image_id"].partition("::")[2] for image in coco["images"]}
        for name in names.values():
            seen[name] = []
        for entry in coco["annotations"]:
            seen[names[entry["image_id"]]].append((entry["category_id"], np.array(entry["bbox"])))
    assert sorted(seen) == [image.stem for image in images]
    for number, image in enumerate(images):
        width, height = Image.open(image).size
        meta = read_json(landed.store.tiles_metadata(f"uwf700__{image.stem}"))["global_meta"]
        found = seen[image.stem]
        assert [category for category, _ in found] == [4 + k for k in range(number)]
        for _, box in found:
            np.testing.assert_allclose(box[2:] / meta["scale"], (0.1 * width, 0.08 * height), rtol=1e-5)


def test_refused_rows_are_printed_with_their_place_and_the_command_fails(landed: Platform, tmp_path: Path) -> None:
    image = next(iter(sorted((landed.store.raw / "uwf-700" / "Images").glob("*/*.jpg"))))
    file = tmp_path / f"{image.stem}.txt"
    file.write_text("3 0.5 0.5 0.1 0.1\n3 0.5 0.5 0.1\n")
    options = (str(file), "--format", "yolo", "--units", "share", "--first-class", "0")
    output = command("uwf700", *options, code=1)
    assert f"refused {file.name}:2: found 4 values, expected 5 values" in output
    assert "no label file for 1 images" in output


def test_a_source_file_that_cannot_be_read_is_named_itself(landed: Platform, tmp_path: Path) -> None:
    file = tmp_path / "labels" / "a.txt"
    file.parent.mkdir()
    file.symlink_to("/proc/self/mem")
    options = ("--format", "yolo", "--units", "share", "--first-class", "0")
    output = command("uwf700", str(file.parent), *options, code=2).replace("\n", "")
    assert f"{file}: Input/output error" in output
    assert "UVEITIS_RAW" not in output


def test_names_that_are_no_text_are_printed_as_escape_sequences(landed: Platform, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / os.fsdecode(b"photo\xff.txt")).write_text("3 0.5 0.5 0.1 0.1\n")
    options = (str(folder), "--format", "yolo", "--units", "share", "--first-class", "0")
    assert r"refused photo\udcff.txt: found no image" in command("uwf700", *options, code=1)
    (folder / os.fsdecode(b"photo\xff.txt")).write_bytes(b"\xff")
    assert r"error: photo\udcff.txt: found byte 0xff" in command("uwf700", *options, code=2)


def test_replaced_label_files_are_named(landed: Platform, tmp_path: Path) -> None:
    image = min((landed.store.raw / "uwf-700" / "Images").glob("*/*.jpg"))
    label = landed.store.raw / "uwf-700" / "Labels" / image.parent.name / f"{image.stem}.TXT"
    label.parent.mkdir(parents=True)
    label.write_text("")
    source = tmp_path / f"{image.stem}.txt"
    source.write_text("3 0.5 0.5 0.1 0.1\n")
    options = (str(source), "--format", "yolo", "--units", "share", "--first-class", "0", "--replace")
    assert "would remove 1 earlier label files" in command("uwf700", *options, "--dry-run")
    assert label.exists()
    assert f"removed 1 earlier label files of these images: Labels/{image.parent.name}/{label.name}" in command(
        "uwf700", *options
    )
    assert not label.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--format", "yolo"), "found no lane nowhere; expected one of"),
        (("uwf700", "--format", "voc"), "--format: expected one of coco, yolo"),
        (("uwf700", "--format", "yolo", "--units", "inch"), "--units: expected pixel or share, found inch"),
        (("uwf700", "--format", "coco", "--class", "x"), "--class: expected <class of the files>=<class of the lane>"),
        (("uwf700", "--format", "coco", "--class", "x=hyalite", "--class", "x="), "--class: found x for 'hyalite' and"),
        (("deepdrid", "--format", "coco"), "expected a lane with `labels.format: obb` or `mask`, found none"),
    ],
)
def test_wrong_options_end_with_a_message(
    landed: Platform, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("")
    assert message in command(arguments[0], str(file), *arguments[1:], code=2)
