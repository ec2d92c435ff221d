"""Parts of a lane get new splits together when the split configuration or a patient's official split changes."""

import json

import polars as pl
import pytest

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.manifest import export_manifest, summarize
from uveitis_assets.landing.manifest_table import manifest_state, read_manifest, require_one_split_assignment
from uveitis_assets.landing.registration import register
from uveitis_assets.landing.splits import hashed_splits
from uveitis_assets.landing.splits_files import write_splits_files
from uveitis_assets_tests.landing.landing_samples import build, jpeg, land, lane, rows


@pytest.fixture
def visits(store):
    """A lane whose 20 patients have one photograph in the first batch and one that lands later."""
    table = ["image,patient"] + [f"{letter}{number:02d}.jpg,P{number}" for number in range(20) for letter in "ab"]
    land(store, "meta.csv", "\n".join(table).encode())
    for number in range(20):
        land(store, f"a{number:02d}.jpg", jpeg(number))
    return lane(image_folder={"csv": "meta.csv", "patient_column": "patient"}, batch_size=100)


def land_second_visits(store):
    for number in range(20):
        land(store, f"b{number:02d}.jpg", jpeg(100 + number))


def patients_in_two_splits(store):
    found = set()
    for fold in range(5):
        splits = {}
        for row in rows(store).values():
            splits.setdefault(row["patient_id"], set()).add(row["fold_splits"][fold])
        found |= {patient for patient, split in splits.items() if len(split) > 1}
    return found


def write_pinned(store, split):
    ids = [f"lane::a{number:02d}" for number in range(20)]
    (store.root / "pinned.json").write_text(json.dumps({"train": [], "val": [], "test": [], split: ids}))


CHANGES = {
    "seed": ({}, {"seed": 7}),
    "test ratio": ({}, {"test_ratio": 0.6}),
    "folds": ({"folds": 8}, {}),
    "official splits": ({"use_official": False}, {}),
    "pinned file": ({}, {"pinned": "pinned.json"}),
    "content of the pinned file": ({"pinned": "pinned.json"}, {"pinned": "pinned.json"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_split_configuration_reassigns_all_batches_although_only_the_new_one_runs(store, visits, change):
    before, after = (SplitConfiguration(**options) for options in CHANGES[change])
    write_pinned(store, "test")
    build(store, visits, before)
    export_manifest(store, visits, before)
    write_pinned(store, "val")
    land_second_visits(store)
    (built,) = build(store, visits, after, batches=["b00002"])
    assert patients_in_two_splits(store) == set()
    require_one_split_assignment("lane", read_manifest(store, "lane"))
    summary = export_manifest(store, visits, after)
    reassigned = [path.read_bytes() for path in store.manifest_parts("lane")]
    build(store, visits, after)
    assert [path.read_bytes() for path in store.manifest_parts("lane")] == reassigned
    assert (built.reassigned_batches, summary.reassigned_batches) == (("b00001",), ())
    assert summary.splits == summarize(read_manifest(store, "lane")).splits


def test_images_that_move_a_patient_move_it_in_batches_that_do_not_run(store):
    land(store, "ultra-widefield-training/Images/1/1_l1.jpg")
    build(store, lane("deepdrid"))
    land(store, "Challenge3_upload/Images/1/1_r1.jpg")
    build(store, lane("deepdrid"), batches=["b00002"])
    assert export_manifest(store, lane("deepdrid"), SplitConfiguration()).reassigned_batches == ("b00001",)
    assert {split for row in rows(store).values() for split in row["fold_splits"]} == {"test"}


def test_parts_that_have_the_present_splits_are_left_alone(store, visits):
    land_second_visits(store)
    build(store, visits)
    before = [path.stat().st_ino for path in store.manifest_parts("lane")]
    assert export_manifest(store, visits, SplitConfiguration()).reassigned_batches == ()
    assert [path.stat().st_ino for path in store.manifest_parts("lane")] == before


def test_a_part_from_before_assignments_were_fingerprinted_is_assigned_again(store, visits):
    build(store, visits)
    (part,) = store.manifest_parts("lane")
    expected = pl.read_parquet(part)
    expected.drop("split_fingerprint").write_parquet(part)
    assert export_manifest(store, visits, SplitConfiguration()).reassigned_batches == ("b00001",)
    assert pl.read_parquet(part).equals(expected)


def test_assigning_a_part_again_does_not_pass_for_making_it_again(store, visits):
    build(store, visits)
    (part,) = store.manifest_parts("lane")
    state = manifest_state(part)
    assert state is not None
    assert export_manifest(store, visits, SplitConfiguration(seed=7)).reassigned_batches == ("b00001",)
    assert manifest_state(part) == state


def test_an_image_that_came_back_under_another_id_follows_its_content_until_its_batch_runs(store):
    before, after = SplitConfiguration(seed=1), SplitConfiguration(seed=4)
    assert hashed_splits("lane", "x/a", before) != hashed_splits("lane", "x/a", after)
    path = land(store, "x/a.jpg", jpeg(1))
    build(store, lane(), before)
    path.unlink()
    land(store, "z.jpg", jpeg(9))
    register(store, lane())
    land(store, "y/a.jpg", jpeg(2))
    register(store, lane())
    land(store, "x/a.jpg", jpeg(1))
    build(store, lane(), after, batches=["b00002", "b00003"])
    export_manifest(store, lane(), after)
    listed = pl.read_parquet(store.manifest_part("lane", "b00001")).row(0, named=True)
    build(store, lane(), after)
    (renamed,) = (row for image_id, row in rows(store).items() if image_id.startswith("lane::a~"))
    assert (listed["image_id"], listed["fold_splits"]) == ("lane::a", renamed["fold_splits"])


def test_a_manifest_of_two_assignments_is_refused_with_what_to_materialize_and_right_after_that(store, visits):
    land_second_visits(store)
    for number in range(20):
        land(store, f"c{number:02d}.jpg", jpeg(200 + number))
    visits = visits.model_copy(update={"batch_size": 20})
    build(store, visits)
    first = store.manifest_part("lane", "b00001").read_bytes()
    after = SplitConfiguration(seed=7)
    build(store, visits, after)
    killed = [path.read_bytes() for path in store.manifest_parts("lane")]
    build(store, visits)
    # Killed after the first of three parts was assigned again.
    assert store.manifest_part("lane", "b00001").read_bytes() == first
    store.manifest_part("lane", "b00001").write_bytes(killed[0])
    refusal = "found b00001 assigned by another than the last one; materialize any batch of lane/manifest again"
    with pytest.raises(ValueError, match=refusal):
        require_one_split_assignment("lane", read_manifest(store, "lane"))
    with pytest.raises(ValueError, match=refusal):
        write_splits_files(store, "stage0", 5)
    assert build(store, visits, after, batches=["b00001"])[0].reassigned_batches == ("b00002", "b00003")
    require_one_split_assignment("lane", read_manifest(store, "lane"))
    assert write_splits_files(store, "stage0", 5)
    require_one_split_assignment("empty", read_manifest(store, "empty"))
