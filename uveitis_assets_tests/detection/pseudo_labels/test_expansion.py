import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pycocotools.coco import COCO

from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.pseudo_label_command import expand_coco_file, main
from uveitis_assets.detection.pseudo_labels.expansion import (
    ExpansionCounts,
    PseudoLabelConfiguration,
    expand_coco,
    frames_reader,
    held_out_images,
)
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.detection.known_detectors import detections, small_frames
from uveitis_assets_tests.detection.tiled_lane import obb_line, write_lane

CATEGORIES = [{"id": 1, "name": "foyer_choroidien"}, {"id": 5, "name": "hemorragie"}]
Label = tuple[tuple[float, float, float, float], int]


def frames_for(_image_id: str) -> ImageFrames:
    """The earlier layout: 4 tiles of 768 px on 1024 px, at 0 and 256."""
    frames = small_frames(crop=(1024, 1024), global_size=1024, tile_size=768)
    assert [(tile.x0, tile.y0) for tile in frames.tiles] == [(0, 0), (256, 0), (0, 256), (256, 256)]
    return frames


def coco_files(
    images: dict[str, list[Label]], frames: ImageFrames | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Global and tile file; labels are given in global px and enter the tiles they meet."""
    frames = frames or frames_for("")
    whole: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    tiles: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for image_id, labels in images.items():
        size = frames.global_size
        windows = [(whole, None, (0, 0, size, size))]
        windows += [(tiles, tile.tile_id, (tile.x0, tile.y0, tile.x1, tile.y1)) for tile in frames.tiles]
        for file, tile_id, window in windows:
            number = len(file["images"]) + 1
            entry = {"id": number, "file_name": f"{image_id}.png", "image_id": image_id}
            entry |= {"width": window[2] - window[0], "height": window[3] - window[1]}
            file["images"].append(entry | ({"tile_id": tile_id} if tile_id else {}))
            for box, label in labels:
                part = shapely.box(*box).intersection(shapely.box(*window))
                if part.area > 0:
                    x0, y0, x1, y1 = part.bounds
                    file["annotations"].append(
                        {
                            "id": len(file["annotations"]) + 1,
                            "image_id": number,
                            "category_id": label,
                            "bbox": [x0 - window[0], y0 - window[1], x1 - x0, y1 - y0],
                            "area": part.area,
                            "iscrowd": 0,
                            "obb": None,
                        }
                    )
    return whole, tiles


def expand(
    images: dict[str, list[Label]],
    predictions: dict[str, Detections],
    *,
    unlabelled: dict[str, list[Label]] | None = None,
    held_out: tuple[str, ...] = (),
    **settings: object,
) -> tuple[list[dict[str, Any]], ExpansionCounts]:
    return expand_coco(
        coco_files(images),
        coco_files(unlabelled) if unlabelled else (),
        predictions,
        frames_of=frames_for,
        held_out=held_out,
        configuration=PseudoLabelConfiguration(**settings),
    )


def pseudo_of(file: dict[str, Any]) -> list[tuple[str, str | None, list[float], int, float]]:
    entries = {entry["id"]: entry for entry in file["images"]}
    return [
        (
            entries[label["image_id"]]["image_id"],
            entries[label["image_id"]].get("tile_id"),
            label["bbox"],
            label["category_id"],
            label["score"],
        )
        for label in file["annotations"]
        if label.get("pseudo")
    ]


def test_a_lesion_lands_in_every_tile_that_shows_it_in_that_tiles_pixels() -> None:
    found = detections([((900, 900, 1000, 1000), 0.95, 5), ((300, 310, 340, 360), 0.92, 1)])
    (whole, tiles), counts = expand({"uwf700::a": []}, {"uwf700::a": found})
    assert pseudo_of(whole) == [
        ("uwf700::a", None, [900, 900, 100, 100], 5, 0.95),
        ("uwf700::a", None, [300, 310, 40, 50], 1, 0.92),
    ]
    assert pseudo_of(tiles) == [
        ("uwf700::a", "tile_000", [300, 310, 40, 50], 1, 0.92),
        ("uwf700::a", "tile_001", [44, 310, 40, 50], 1, 0.92),
        ("uwf700::a", "tile_002", [300, 54, 40, 50], 1, 0.92),
        ("uwf700::a", "tile_003", [644, 644, 100, 100], 5, 0.95),
        ("uwf700::a", "tile_003", [44, 54, 40, 50], 1, 0.92),
    ]
    assert counts.n_pseudo_lesions == 2


def test_a_lesion_across_a_tiles_edge_is_clipped_there() -> None:
    found = detections([((700, 100, 800, 200), 0.95, 5)])
    (_, tiles), _ = expand({"uwf700::a": []}, {"uwf700::a": found})
    assert [(tile, box) for _, tile, box, _, _ in pseudo_of(tiles)] == [
        ("tile_000", [700, 100, 68, 100]),
        ("tile_001", [444, 100, 100, 100]),
    ]


def test_existing_labels_stay_as_they_were_and_the_input_is_not_changed() -> None:
    images: dict[str, list[Label]] = {"uwf700::a": [((10, 10, 60, 60), 5)], "uwf700::b": [((500, 500, 700, 720), 1)]}
    bases = coco_files(images)
    before = copy.deepcopy(bases)
    expanded, _ = expand_coco(
        bases,
        (),
        {"uwf700::a": detections([((100, 100, 140, 140), 0.99, 5)])},
        frames_of=frames_for,
        held_out=(),
        configuration=PseudoLabelConfiguration(),
    )
    assert bases == before
    for base, file in zip(before, expanded, strict=True):
        assert file["images"] == base["images"]
        assert file["annotations"][: len(base["annotations"])] == base["annotations"]
        assert len(file["annotations"]) > len(base["annotations"])
        ids = [label["id"] for label in file["annotations"]]
        assert ids == list(range(1, len(ids) + 1))


def test_detections_that_repeat_a_label_or_each_other_stay_out() -> None:
    found = detections(
        [
            ((12, 10, 62, 60), 0.99, 5),  # the label again
            ((12, 10, 62, 60), 0.98, 1),  # of another category: something else
            ((200, 200, 240, 240), 0.95, 5),
            ((203, 200, 243, 240), 0.97, 5),  # better than the one before
        ]
    )
    (whole, tiles), counts = expand({"uwf700::a": [((10, 10, 60, 60), 5)]}, {"uwf700::a": found})
    assert [(box, label) for _, _, box, label, _ in pseudo_of(whole)] == [
        ([12, 10, 50, 50], 1),
        ([203, 200, 40, 40], 5),
    ]
    assert {tuple(box[2:]) for _, _, box, _, _ in pseudo_of(tiles)} == {(50, 50), (40, 40)}
    assert (counts.n_pseudo_lesions, counts.n_duplicates) == (2, 2)


def test_a_lesion_that_repeats_a_label_in_one_tile_enters_neither_file() -> None:
    # In tile_001, which begins at x = 256, label and detection show the same part; in the global image they differ.
    label: Label = ((0, 300, 330, 400), 5)
    found = detections([((180, 300, 330, 400), 0.99, 5)])
    (whole, tiles), counts = expand({"uwf700::a": [label]}, {"uwf700::a": found})
    assert pseudo_of(whole) == pseudo_of(tiles) == []
    assert counts.n_duplicates == 1


def test_only_confident_detections_of_the_files_categories_count() -> None:
    found = detections(
        [((10, 10, 60, 60), 0.8999, 5), ((300, 300, 340, 340), 0.9, 5), ((400, 400, 440, 440), 0.99, 17)]
    )
    (whole, _), counts = expand({"uwf700::a": []}, {"uwf700::a": found})
    assert [box for _, _, box, _, _ in pseudo_of(whole)] == [[300, 300, 40, 40]]
    assert counts.n_other_classes == 1
    (whole, _), _ = expand({"uwf700::a": []}, {"uwf700::a": found}, min_score=0.5)
    assert len(pseudo_of(whole)) == 2


def test_images_that_are_evaluated_on_are_neither_touched_nor_added() -> None:
    found = detections([((10, 10, 60, 60), 0.99, 5)])
    predictions = {"uwf700::a": found, "uwf700::b": found, "uwf700::c": found}
    (whole, tiles), counts = expand(
        {"uwf700::a": [], "uwf700::b": []},
        predictions,
        unlabelled={"uwf700::c": []},
        held_out=("uwf700::b", "uwf700::c"),
    )
    assert {image for image, *_ in pseudo_of(whole)} == {image for image, *_ in pseudo_of(tiles)} == {"uwf700::a"}
    assert [entry["image_id"] for entry in whole["images"]] == ["uwf700::a", "uwf700::b"]
    assert counts.n_held_out_images == 2


def test_an_unlabelled_image_enters_with_all_its_tiles_when_it_gets_a_label_and_not_otherwise() -> None:
    predictions = {
        "uwf700::u": detections([((10, 10, 60, 60), 0.99, 5)]),
        "uwf700::v": detections([((10, 10, 60, 60), 0.5, 5)]),
    }
    (whole, tiles), counts = expand(
        {"uwf700::a": []}, predictions, unlabelled={"uwf700::u": [], "uwf700::v": [], "uwf700::w": [], "uwf700::a": []}
    )
    assert [entry["image_id"] for entry in whole["images"]] == ["uwf700::a", "uwf700::u"]
    assert [(entry["image_id"], entry["tile_id"]) for entry in tiles["images"][4:]] == [
        ("uwf700::u", f"tile_00{number}") for number in range(4)
    ]
    assert [entry["id"] for entry in tiles["images"]] == list(range(1, 9))
    assert pseudo_of(tiles) == [("uwf700::u", "tile_000", [10, 10, 50, 50], 5, 0.99)]
    assert counts.n_added_images == 1


def test_labelled_images_can_be_left_alone() -> None:
    found = detections([((10, 10, 60, 60), 0.99, 5)])
    (whole, _), _ = expand(
        {"uwf700::a": []},
        {"uwf700::a": found, "uwf700::u": found},
        unlabelled={"uwf700::u": []},
        labelled_images="leave",
    )
    assert [image for image, *_ in pseudo_of(whole)] == ["uwf700::u"]


def test_tiles_of_the_native_crop_get_native_pixels() -> None:
    frames = small_frames(crop=(2048, 2048), global_size=1024, tile_size=1024, overlap=0.0, frame="native")
    base = coco_files({"uwf700::a": []}, frames)[1]
    (tiles,), _ = expand_coco(
        [base],
        (),
        {"uwf700::a": detections([((600, 100, 700, 150), 0.99, 5)])},
        frames_of=lambda _: frames,
        held_out=(),
        configuration=PseudoLabelConfiguration(),
    )
    assert pseudo_of(tiles) == [("uwf700::a", "tile_001", [176, 200, 200, 100], 5, 0.99)]


def test_oriented_detections_keep_their_corners() -> None:
    corners = np.array([[[300, 300], [320, 310], [310, 330], [290, 320]]], np.float32)
    found = Detections(
        np.array([[290, 300, 320, 330]], np.float32), np.ones(1, np.float32), np.array([5], np.int64), corners
    )
    (whole, tiles), _ = expand({"uwf700::a": []}, {"uwf700::a": found})
    assert np.allclose(np.reshape(whole["annotations"][0]["obb"], (4, 2)) * 1024, corners[0])
    in_tile = tiles["annotations"][-1]
    assert np.allclose(np.reshape(in_tile["obb"], (4, 2)) * 768, corners[0] - 256)
    ring = np.reshape(in_tile["segmentation"][0], (-1, 2)) + 256
    assert shapely.Polygon(ring).equals(shapely.Polygon(corners[0]))


def test_a_tile_of_another_size_than_its_frames_is_refused() -> None:
    base = coco_files({"uwf700::a": []})[1]
    base["images"][2]["width"] = 512
    with pytest.raises(ValueError, match=r"uwf700::a tile_002: expected size \(768, 768\), found \(512, 768\)"):
        expand_coco(
            [base],
            (),
            {"uwf700::a": detections([((10, 10, 60, 60), 0.99, 5)])},
            frames_of=frames_for,
            held_out=(),
            configuration=PseudoLabelConfiguration(),
        )


def test_the_split_files_say_who_is_held_out(tmp_path: Path) -> None:
    for fold, (val, test) in enumerate([(["a"], ["t"]), (["b"], ["t"])]):
        write_json(tmp_path / f"{fold}.json", {"train": ["x"], "val": val, "test": test})
    assert held_out_images(sorted(tmp_path.glob("*.json"))) == {"a", "b", "t"}
    with pytest.raises(ValueError, match="found none"):
        held_out_images([])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtefactStore:
    """Labels, predictions, frames and splits as the commands find them."""
    store = ArtefactStore(tmp_path, tmp_path / "raw")
    monkeypatch.setenv("UVEITIS_DATA", str(tmp_path))
    images: dict[str, list[Label]] = {"uwf700::a": [((10, 10, 60, 60), 5)], "uwf700::b": []}
    write_json(tmp_path / "base.json", coco_files(images)[1])
    write_json(tmp_path / "unlabelled.json", coco_files({"uwf700::u": []})[1])
    write_json(tmp_path / "splits" / "stage0_0.json", {"train": ["uwf700::a"], "val": ["uwf700::b"], "test": []})
    frames = frames_for("")
    for image_id in ("uwf700::a", "uwf700::b", "uwf700::u"):
        key = artefact_key(image_id)
        write_json(store.crop_metadata(key), frames.crop_metadata())
        write_json(store.tiles_metadata(key), frames.tiles_metadata(image_id))
        entry = {"box": [900, 900, 1000, 1000], "score": 0.95, "label": 5}
        write_json(tmp_path / "preds" / "exp" / f"{key}.json", {"image_id": image_id, "predictions": [entry]})
    return store


def test_the_command_prints_the_earlier_numbers_and_writes_a_coco_file(
    store: ArtefactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    out = store.root / "out.json"
    main(
        [
            *("--base-coco", str(store.root / "base.json")),
            *("--unlabeled-coco", str(store.root / "unlabelled.json")),
            *("--pred-dir", str(store.root / "preds" / "exp")),
            *("--out-coco", str(out)),
        ]
    )
    # 2 images and 1 unlabelled one with 4 tiles each; `b` is evaluated on; the box lies in tile_003 alone.
    assert json.loads(capsys.readouterr().out) == {
        "images": 12,
        "annotations": 3,
        "pseudo_annotations": 2,
        "out": str(out),
    }
    coco = COCO(str(out))
    assert {coco.imgs[label["image_id"]]["tile_id"] for label in coco.anns.values() if label.get("pseudo")} == {
        "tile_003"
    }


def assign_splits(store: ArtefactStore, name: str, folds: list[tuple[str, str]], test: str = "") -> None:
    """Splits of images named by letters: train and val of each fold."""
    for fold, (train, val) in enumerate(folds):
        sides = {"train": train, "val": val, "test": test}
        content = {side: [f"uwf700::{letter}" for letter in letters] for side, letters in sides.items()}
        write_json(store.splits_file(name, fold), content)


def expand_the_base(store: ArtefactStore, **options: Any) -> set[str]:
    """Expand; returns the images that got pseudo-labels."""
    out = store.root / "out.json"
    base, predictions = store.root / "base.json", store.root / "preds" / "exp"
    expand_coco_file(store, base, predictions, out, unlabeled_coco=store.root / "unlabelled.json", **options)
    return {image for image, *_ in pseudo_of(read_json(out))}


def test_without_a_split_file_the_fold_is_the_one_that_the_base_file_trains(store: ArtefactStore) -> None:
    # Each image is validated in one fold; all but fold 1 hold an image of the base out.
    assign_splits(store, "stage0", [("bu", "a"), ("ab", "u"), ("au", "b")])
    assert expand_the_base(store) == {"uwf700::a", "uwf700::b"}
    assign_splits(store, "stage0", [("buc", "a"), ("abu", "c"), ("auc", "b")])
    assert expand_the_base(store) == {"uwf700::a", "uwf700::b", "uwf700::u"}


def test_a_split_without_the_fold_holds_all_of_its_evaluated_images_out(store: ArtefactStore) -> None:
    assign_splits(store, "stage0", [("buc", "a"), ("abu", "c"), ("auc", "b")])
    assign_splits(store, "other", [("", "u")])
    assert expand_the_base(store) == {"uwf700::a", "uwf700::b"}


@pytest.mark.parametrize(
    ("folds", "found"),
    [([("b", "a"), ("a", "b")], "found none of 0, 1"), ([("abc", "d"), ("abd", "c"), ("cd", "ab")], "found 0, 1 of")],
)
def test_a_base_file_of_no_fold_or_of_several_asks_for_the_split_file(
    store: ArtefactStore, folds: list[tuple[str, str]], found: str
) -> None:
    assign_splits(store, "stage0", folds)
    with pytest.raises(ValueError, match=rf"base\.json: expected one fold .* {found}.*--split-file \S+stage0_0\.json"):
        expand_the_base(store)
    assert not (store.root / "out.json").exists()
    assert expand_the_base(store, split_files=[store.splits_file("stage0", 0)]) >= {"uwf700::b", "uwf700::u"}


def test_the_split_file_that_is_asked_for_is_one_of_the_base_files_own_images(store: ArtefactStore) -> None:
    assign_splits(store, "another", [("x", "y"), ("y", "x")])
    assign_splits(store, "stage0", [("b", "a"), ("a", "b")])
    with pytest.raises(ValueError, match=r"found none of 0, 1;.*--split-file \S+stage0_0\.json"):
        expand_the_base(store)


def test_the_command_refuses_to_expand_without_splits(store: ArtefactStore) -> None:
    (store.root / "splits" / "stage0_0.json").unlink()
    with pytest.raises(ValueError, match="expected the split files"):
        expand_coco_file(store, store.root / "base.json", store.root / "preds" / "exp", store.root / "out.json")
    assert not (store.root / "out.json").exists()


def test_expanded_files_are_read_as_training_reads_them(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path, tmp_path / "raw")
    write_lane(store, [obb_line(4, (0.3, 0.4), (0.1, 0.15))])
    before = read_labelled_split(store, "uwf700", fold=0, split="train").images[0]
    centre = np.array(before.frames.raw_to_global.apply(np.multiply(before.frames.raw_size, (0.7, 0.6))))
    lesion = np.concatenate([centre - 6, centre + 6]).astype(np.float32)
    paths = [store.coco_file("uwf700", "train", 0, tiles=tiles) for tiles in (False, True)]
    expanded, counts = expand_coco(
        [read_json(path) for path in paths],
        (),
        {before.image_id: detections([(tuple(lesion), 0.95, 15)])},
        frames_of=frames_reader(store),
        held_out=(),
        configuration=PseudoLabelConfiguration(),
    )
    for path, content in zip(paths, expanded, strict=True):
        write_json(path, content)
    after = read_labelled_split(store, "uwf700", fold=0, split="train").images[0]
    assert counts.n_pseudo_lesions == 1
    assert len(after.truth) == len(before.truth) + 1
    assert np.allclose(after.truth.boxes[-1], lesion, atol=1e-3)
    assert after.truth.scores.tolist() == pytest.approx([1.0, 0.95])
    to_tiling = after.frames.raw_to_global.inverse().then(after.frames.raw_to_tiling)
    for tile, place in zip(after.tiles, after.frames.tiles, strict=True):
        for box in tile.truth.boxes[tile.truth.scores < 1]:
            shifted = box + np.tile((place.x0, place.y0), 2)
            expected = np.clip(to_tiling.apply_boxes(lesion), (place.x0, place.y0) * 2, (place.x1, place.y1) * 2)
            assert np.allclose(shifted, expected, atol=1e-3)
    assert any((tile.truth.scores < 1).any() for tile in after.tiles)
