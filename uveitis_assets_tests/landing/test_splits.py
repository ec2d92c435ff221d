"""Splits: by patient, stable, reproducible."""

import hashlib
import json
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.splits import hashed_splits, patient_splits, read_pinned_splits, strictest
from uveitis_assets.storage.files import PathEscapesRootError

CONFIGURATION = SplitConfiguration()
# Second letters of train, val, test of Uveitis-001 to -040 in fold 0, recorded when the rule was made.
FROZEN_SPLITS = "rrrrrreaarrrrrererrrrrareerrerrrerrrrrrr"


def test_ratios_over_ten_thousand_patients():
    of_patients = [hashed_splits("uwf700", f"patient {number}", CONFIGURATION) for number in range(10_000)]
    for fold in range(5):
        splits = [of_folds[fold] for of_folds in of_patients]
        # Expected 1500 test and 1700 val; five standard deviations are 179 and 188.
        assert abs(splits.count("test") - 1500) < 180
        assert abs(splits.count("val") - 1700) < 190


@settings(max_examples=50)
@given(st.text(max_size=30), st.text(max_size=30), st.integers(0, 2**31), st.integers(2, 20), st.floats(0, 0.99))
def test_a_patient_is_test_everywhere_or_validates_exactly_once(dataset, patient, seed, folds, test_ratio):
    configuration = SplitConfiguration(seed=seed, folds=folds, test_ratio=test_ratio)
    splits = hashed_splits(dataset, patient, configuration)
    assert len(splits) == folds
    assert set(splits) == {"test"} or (splits.count("val") == 1 and splits.count("train") == folds - 1)


def test_the_fold_does_not_depend_on_the_test_draw():
    """Patients that leave test when its ratio shrinks do not move the others between folds."""
    small, large = SplitConfiguration(test_ratio=0.05), SplitConfiguration(test_ratio=0.3)
    for number in range(500):
        before, after = hashed_splits("d", str(number), large), hashed_splits("d", str(number), small)
        assert after == before or set(before) == {"test"}


def test_seed_and_dataset_matter():
    def splits(**options):
        dataset = options.pop("dataset", "a")
        return [hashed_splits(dataset, str(number), SplitConfiguration(**options)) for number in range(200)]

    assert splits() != splits(seed=43)
    assert splits() != splits(dataset="b")
    assert splits() == splits(name="other")


def test_a_test_ratio_of_zero_leaves_test_empty():
    configuration = SplitConfiguration(test_ratio=0)
    assert all("test" not in hashed_splits("a", str(number), configuration) for number in range(500))


def test_unicode_forms_of_a_patient_are_one_patient():
    for number in range(50):
        patient = f"é{number}"
        forms = {hashed_splits("a", normalize(form, patient), CONFIGURATION) for form in ("NFC", "NFD")}
        assert len(forms) == 1


def test_known_values_stay():
    """Frozen: a change here would move images of every installation between train and test."""
    splits = "".join(hashed_splits("uwf700", f"Uveitis-{number:03d}", CONFIGURATION)[0][1] for number in range(1, 41))
    assert splits == FROZEN_SPLITS


def test_the_draw_is_blake2b_of_seed_purpose_dataset_and_patient():
    for number in range(50):
        digest = hashlib.blake2b(f"42\0test\0d\0{number}".encode(), digest_size=8).digest()
        is_test = int.from_bytes(digest, "big") < 0.15 * 2**64
        assert (hashed_splits("d", str(number), CONFIGURATION)[0] == "test") == is_test


def test_official_splits_hold_in_every_fold_unless_switched_off():
    for official in ("train", "val", "test"):
        assert patient_splits("d", "p", CONFIGURATION, official) == (official,) * 5
        hashed = hashed_splits("d", "p", CONFIGURATION)
        assert patient_splits("d", "p", SplitConfiguration(use_official=False), official) == hashed


def test_pinned_splits_win_over_official_and_hash():
    hashed = hashed_splits("d", "p", CONFIGURATION)
    assert patient_splits("d", "p", CONFIGURATION, "test", ["train"] * 5) == ("train",) * 5
    assert patient_splits("d", "p", CONFIGURATION, None, ["val", None, None, None, None]) == ("val", *hashed[1:])


def test_the_strictest_of_contradictory_splits():
    assert strictest(["train", "val"]) == "val"
    assert strictest({"train", "test", "val"}) == "test"
    assert strictest(["train"]) == "train"
    assert strictest(()) is None


def test_pinned_files_per_fold_and_for_all_folds(tmp_path):
    for fold in range(2):
        value = {"train": ["a"], "val": ["b"], "test": ["c"]} if fold == 0 else {"train": ["b"], "val": [], "test": []}
        (tmp_path / f"old_{fold}.json").write_text(json.dumps(value))
    both = read_pinned_splits(tmp_path, SplitConfiguration(folds=2, pinned="old_{fold}.json"))
    assert both == [{"a": "train", "b": "val", "c": "test"}, {"b": "train"}]
    one = read_pinned_splits(tmp_path, SplitConfiguration(folds=2, pinned="old_0.json"))
    assert one == [both[0], both[0]]
    assert read_pinned_splits(tmp_path, SplitConfiguration()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected the keys train, val and test, found list"),
        ('{"train": []}', r"found \['train'\]"),
        ('{"train": ["a"], "val": ["a"], "test": []}', "a stands in train and val"),
        ('{"train": [1], "val": [], "test": []}', "expected image ids in train, found 1"),
    ],
)
def test_wrong_pinned_files_are_named(tmp_path, text, message):
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_pinned_splits(tmp_path, SplitConfiguration(pinned="old.json"))
    assert str(tmp_path / "old.json") in str(caught.value)


def test_pinned_files_lie_below_the_data_folder():
    for pinned in ("", ".", "../splits.json", "/etc/splits.json"):
        with pytest.raises(ValueError, match="expected a file below"):
            SplitConfiguration(pinned=pinned)


def test_a_missing_pinned_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_pinned_splits(tmp_path, SplitConfiguration(pinned="none.json"))


def test_a_link_among_the_pinned_files_must_not_lead_out_of_the_data_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "outside.json").write_text('{"train": [], "val": [], "test": []}')
    (tmp_path / "data" / "link.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(PathEscapesRootError, match=r"link\.json"):
        read_pinned_splits(tmp_path / "data", SplitConfiguration(pinned="link.json"))
