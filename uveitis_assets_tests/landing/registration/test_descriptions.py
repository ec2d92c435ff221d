"""Labels that are added, changed or removed after their image was registered."""

from uveitis_assets.landing.registration import register
from uveitis_assets_tests.landing.landing_samples import land, lane, later, live


def test_added_changed_and_removed_labels_relabel_the_image(store):
    for name in ("a", "b"):
        land(store, f"Images/Uveitis/{name}.jpg")
    register(store, lane("uwf700"))
    label = land(store, "Labels/Uveitis/a.txt", b"1 0 0 1 0 1 1 0 1\n")
    report = register(store, lane("uwf700"))
    assert (report.relabelled, report.touched_batches, report.new_batches) == (("lane::a",), ("b00001",), ())
    assert register(store, lane("uwf700")).relabelled == ()
    later(label)
    assert register(store, lane("uwf700")).relabelled == ()
    label.write_bytes(b"")
    assert register(store, lane("uwf700")).relabelled == ("lane::a",)
    label.unlink()
    assert register(store, lane("uwf700")).relabelled == ("lane::a",)
    assert live(store)["Images/Uveitis/a.jpg"].label_format == "none"


def test_a_changed_grade_relabels_only_its_image(store):
    land(store, "train/1_left.jpeg")
    land(store, "train/2_left.jpeg")
    land(store, "trainLabels.csv", b"image,level\n1_left,0\n2_left,0\n")
    register(store, lane("eyepacs"))
    land(store, "trainLabels.csv", b"image,level\n1_left,3\n2_left,0\n")
    assert register(store, lane("eyepacs")).relabelled == ("lane::1_left",)
    assert live(store)["train/1_left.jpeg"].notes == "grade=3"


def test_a_label_that_cannot_be_read_is_a_problem(store):
    land(store, "Images/Uveitis/a.jpg")
    (store.raw / "ds" / "Labels" / "Uveitis").mkdir(parents=True)
    (store.raw / "ds" / "Labels" / "Uveitis" / "a.txt").symlink_to("/etc/hostname")
    report = register(store, lane("uwf700"))
    assert [(problem.path, problem.reason) for problem in report.problems] == [("Labels/Uveitis/a.txt", "escapes_root")]
