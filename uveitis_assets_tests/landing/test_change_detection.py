"""The landing sensor's cheap look at a folder."""

import pytest

from uveitis_assets.landing.change_detection import landing_fingerprint
from uveitis_assets.landing.registration import register
from uveitis_assets_tests.landing.landing_samples import jpeg, land, lane, later


@pytest.fixture
def landed(store):
    for name in ("Images/Uveitis/a.jpg", "Images/Uveitis/b.jpg", "Images/DR/a.jpg"):
        land(store, name)
    land(store, "Labels/Uveitis/a.txt", b"1 0 0 1 0 1 1 0 1\n")
    register(store, lane("uwf700"))
    return store


def test_the_fingerprint_of_an_unchanged_folder_stays(landed):
    values = {landing_fingerprint(landed, lane("uwf700"), tick) for tick in range(5)}
    assert len(values) == 1


def act_add(root):
    (root / "Images/DR/c.jpg").write_bytes(jpeg(7))


def act_remove(root):
    (root / "Images/DR/a.jpg").unlink()


def act_rename(root):
    (root / "Images/DR/a.jpg").rename(root / "Images/Uveitis/z.jpg")


def act_replace(root):
    (root / "new").write_bytes(jpeg(8))
    (root / "new").replace(root / "Images/DR/a.jpg")


def act_overwrite(root):
    (root / "Images/DR/a.jpg").write_bytes(jpeg(8))


def act_edit_label(root):
    (root / "Labels/Uveitis/a.txt").write_bytes(b"")


def act_new_folder(root):
    (root / "Images/New").mkdir()
    (root / "Images/New/q.jpg").write_bytes(jpeg(9))


@pytest.mark.parametrize(
    "act", [act_add, act_remove, act_rename, act_replace, act_overwrite, act_edit_label, act_new_folder]
)
def test_the_fingerprint_notices_and_settles_after_registering(landed, act):
    # Folder times have the resolution of the kernel's clock tick: old ones differ from those of the act.
    for folder in (landed.raw / "ds", *(landed.raw / "ds").rglob("*/")):
        later(folder, seconds=-3600)
    before = landing_fingerprint(landed, lane("uwf700"), 0)
    act(landed.raw / "ds")
    assert landing_fingerprint(landed, lane("uwf700"), 1) != before
    register(landed, lane("uwf700"))
    values = {landing_fingerprint(landed, lane("uwf700"), tick) for tick in range(4)}
    assert len(values) == 1


def test_an_in_place_change_is_noticed_within_one_round_of_slices(store):
    def look(tick):
        return landing_fingerprint(store, lane(), tick, fewest_files_per_tick=4)

    for number in range(10):
        land(store, f"{number}.jpg")
    register(store, lane())
    quiet = look(0)
    land(store, "9.jpg", jpeg(77))
    noticed = [look(tick) != quiet for tick in range(6)]
    assert noticed == [False, False, True] * 2


def test_an_edited_csv_is_noticed_at_once(store):
    land(store, "train/1_left.jpeg")
    land(store, "trainLabels.csv", b"image,level\n1_left,0\n")
    register(store, lane("eyepacs"))
    before = landing_fingerprint(store, lane("eyepacs"))
    land(store, "trainLabels.csv", b"image,level\n1_left,1\n")
    assert landing_fingerprint(store, lane("eyepacs")) != before


def test_the_fingerprint_of_a_missing_folder_and_before_the_first_registration(store):
    empty = landing_fingerprint(store, lane())
    land(store, "a.jpg")
    assert landing_fingerprint(store, lane()) != empty
