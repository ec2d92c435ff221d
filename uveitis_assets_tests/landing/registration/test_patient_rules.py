"""Registering lanes whose patients stand in a table or in file names, and changing that rule later."""

import pytest

from uveitis_assets.landing.change_detection import landing_fingerprint
from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.ledger_table import read_ledger_table
from uveitis_assets.landing.manifest import export_manifest
from uveitis_assets.landing.pseudonyms import patient_key, pseudonym
from uveitis_assets.landing.registration import LostPatientsError, register
from uveitis_assets.landing.registration_digest import registered_states
from uveitis_assets_tests.landing.landing_samples import build, jpeg, land, lane, later, live, rows

EYES = {"pattern": r"(?P<patient>\d+)_(left|right)"}
N_PERSONS = 12


def with_rule(rule=None, **options):
    return lane("uwf700", batch_size=5, **({} if rule is None else {"patients": rule}), **options)


def land_pairs(store):
    for number in range(N_PERSONS):
        for eye in ("left", "right"):
            land(store, f"Images/Uveitis/{number}_{eye}.jpg")


def patients(store):
    return {path.rpartition("/")[2]: entry.patient for path, entry in live(store).items()}


def states(store):
    return registered_states(read_ledger_table(store.ledger_file("lane")), b"")


def folds_by_person(store):
    """The splits over all folds of each person's images."""
    found = {}
    for image_id, row in rows(store).items():
        found.setdefault(image_id.rpartition("::")[2].split("_")[0], set()).add(tuple(row["fold_splits"]))
    return found


def test_both_eyes_of_a_person_share_pseudonym_and_splits(store):
    land_pairs(store)
    build(store, with_rule())
    assert any(len(splits) > 1 for splits in folds_by_person(store).values())
    build(store, with_rule(EYES))
    assert all(len(splits) == 1 for splits in folds_by_person(store).values())
    key = patient_key(store)
    assert {image_id: row["patient_id"] for image_id, row in rows(store).items()} == {
        f"lane::{number}_{eye}": pseudonym(key, "lane", str(number))
        for number in range(N_PERSONS)
        for eye in ("left", "right")
    }


def test_a_lane_without_a_rule_has_the_ledger_and_the_digests_that_it_had(store):
    land_pairs(store)
    register(store, with_rule())
    before, data = states(store), store.ledger_file("lane").read_bytes()
    assert "patient_rule" not in read_ledger_table(store.ledger_file("lane")).columns
    register(store, with_rule(EYES))
    assert set(states(store).items()).isdisjoint(before.items())
    register(store, with_rule())
    assert states(store) == before
    assert store.ledger_file("lane").read_bytes() == data


def test_a_changed_rule_gives_all_images_their_patients_anew(store):
    land_pairs(store)
    land(store, "Images/Uveitis/other.jpg")
    register(store, with_rule())
    before = landing_fingerprint(store, with_rule())
    report = register(store, with_rule(EYES))
    assert len(report.relabelled) == 2 * N_PERSONS
    assert report.touched_batches == ("b00001", "b00002", "b00003", "b00004", "b00005")
    assert report.new_batches == ()
    assert patients(store)["3_left.jpg"] == patients(store)["3_right.jpg"] == "3"
    assert [(problem.path, problem.reason) for problem in report.problems] == [
        ("Images/Uveitis/other.jpg", "no_patient")
    ]
    # The sensor sees the changed rule, too.
    assert landing_fingerprint(store, with_rule(EYES)) != before
    assert register(store, with_rule(EYES)).relabelled == ()
    # Another rule that tells nothing of some images does not leave them the patients of the former one.
    register(store, with_rule({"pattern": r"(?P<patient>1\d)_.*"}))
    assert patients(store)["3_left.jpg"] == "3_left"
    assert patients(store)["11_left.jpg"] == patients(store)["11_right.jpg"] == "11"
    register(store, with_rule())
    assert patients(store)["11_left.jpg"] == "11_left"


def test_the_manifest_of_all_batches_follows_a_changed_rule(store):
    land_pairs(store)
    build(store, with_rule())
    register(store, with_rule(EYES))
    build(store, with_rule(EYES), batches=["b00001"])
    export_manifest(store, with_rule(EYES), SplitConfiguration())
    assert all(len(splits) == 1 for splits in folds_by_person(store).values())


def test_a_changed_table_moves_its_images_and_a_renamed_file_keeps_its_patient(store):
    rule = {"csv": "people.csv"}
    for name in ("a", "b", "c"):
        land(store, f"Images/Uveitis/{name}.jpg")
    land(store, "people.csv", b"image,patient\na,P1\nb,P1\nc,P2\n")
    register(store, with_rule(rule))
    assert patients(store) == {"a.jpg": "P1", "b.jpg": "P1", "c.jpg": "P2"}
    before = landing_fingerprint(store, with_rule(rule))
    land(store, "people.csv", b"image,patient\na,P1\nb,P2\nc,P2\n")
    assert landing_fingerprint(store, with_rule(rule)) != before
    assert register(store, with_rule(rule)).relabelled == ("lane::b",)
    folder = store.raw / "ds" / "Images" / "Uveitis"
    (folder / "b.jpg").rename(folder / "renamed.jpg")
    report = register(store, with_rule(rule))
    assert report.renamed == ("lane::b",)
    assert patients(store) == {"a.jpg": "P1", "c.jpg": "P2", "renamed.jpg": "P2"}
    assert sorted(problem.reason for problem in report.problems) == ["missing", "no_patient"]
    assert register(store, with_rule(rule)).relabelled == ()
    assert patients(store)["renamed.jpg"] == "P2"


def test_a_table_with_any_name_is_watched(store):
    rule = {"csv": "people.txt"}
    land(store, "Images/Uveitis/a.jpg")
    later(land(store, "people.txt", b"image\tpatient\na\tP1\n"), -100)
    register(store, with_rule(rule))
    before = landing_fingerprint(store, with_rule(rule))
    (store.raw / "ds" / "people.txt").write_bytes(b"image\tpatient\na\tP2\n")
    assert landing_fingerprint(store, with_rule(rule)) != before


def test_a_copy_of_a_removed_photograph_follows_the_patient_of_the_present_rule(store):
    first = land(store, "Images/Healthy/7_left.jpg", jpeg(7))
    land(store, "Images/Uveitis/8_left.jpg", jpeg(7))
    land(store, "Images/Uveitis/8_right.jpg", jpeg(8))
    register(store, with_rule())
    first.unlink()
    register(store, with_rule())
    assert live(store)["Images/Uveitis/8_left.jpg"].split_patient == "7_left"
    report = register(store, with_rule(EYES))
    assert {entry.split_patient for entry in live(store).values()} == {"8"}
    assert report.problems == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "t.csv: no such file"),
        (b"image;subject\na.jpg;P1\n", "add patient"),
        (b"image;patient\na.jpg;P1\nb.jpg;P1;L\n", "t.csv:3: expected 2 cells, found 3"),
        (b"PK\x03\x04...", "save it as CSV"),
    ],
    ids=["missing", "columns", "row", "workbook"],
)
def test_nothing_is_registered_where_the_table_of_patients_cannot_be_read(store, content, said):
    dataset = lane(patients={"csv": "t.csv"})
    land(store, "a.jpg")
    land(store, "t.csv", b"image;patient\na.jpg;P1\n")
    register(store, dataset)
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file() and "raw" not in path.parts}
    land(store, "b.jpg")
    (store.raw / "ds" / "t.csv").unlink()
    if content is not None:
        land(store, "t.csv", content)
    with pytest.raises(LostPatientsError, match="lane: the patient ids of its images stand in a table") as refused:
        register(store, dataset)
    assert said in str(refused.value)
    assert "P1" not in str(refused.value)
    after = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file() and "raw" not in path.parts}
    assert after == before
    land(store, "t.csv", b"image;patient\na.jpg;P1\nb.jpg;P1\n")
    assert register(store, dataset).new == ("lane::b",)
    assert patients(store) == {"a.jpg": "P1", "b.jpg": "P1"}


def test_an_older_ledger_of_a_table_keeps_the_patients_of_images_without_a_row(store):
    dataset = lane(image_folder={"csv": "t.csv", "patient_column": "patient"})
    land(store, "a.jpg")
    land(store, "t.csv", b"image,patient\na.jpg,P1\n")
    register(store, dataset)
    path = store.ledger_file("lane")
    read_ledger_table(path).drop("patient_rule").write_parquet(path)
    land(store, "b.jpg")
    land(store, "t.csv", b"image,patient\nb.jpg,P2\n")
    register(store, dataset)
    assert patients(store) == {"a.jpg": "P1", "b.jpg": "P2"}
    # Without the column of patients the table tells none any more.
    register(store, lane(image_folder={"csv": "t.csv"}))
    assert patients(store) == {"a.jpg": "a", "b.jpg": "b"}
