"""What a user sees in Dagster's UI after the lanes have run: the graph, metadata, previews, checks, dialogs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from uveitis_assets_tests.e2e import sample_instance
from uveitis_assets_tests.e2e.clinic_definitions import CLINIC_PATIENTS
from uveitis_assets_tests.e2e.sample_instance import BROKEN_BATCH, GOOD_BATCH, SampleInstance
from uveitis_assets_tests.e2e.user_interface import UserInterface, chromium, chromium_programs, webserver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium_programs() is None, reason="chromium or chromedriver is not installed"),
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleInstance:
    """Finished runs: uwf700 with a good and a broken batch, fgadr as a range, a clinic with patients' names."""
    sample = SampleInstance.create(tmp_path_factory.mktemp("user_interface"))
    sample_instance.run_uwf700(sample, 5, (520, 410), n_label_partitions=1)
    sample_instance.land_broken_delivery(sample)
    sample_instance.run_fgadr(sample, 3, 256)
    sample_instance.run_clinic(sample)
    return sample


@pytest.fixture(scope="module")
def ui(sample: SampleInstance) -> Iterator[UserInterface]:
    """The UI of the instance in a browser."""
    with (
        webserver(sample, "uveitis_assets_tests.e2e.clinic_definitions") as address,
        chromium() as driver,
    ):
        yield UserInterface(driver, address)


def test_a_lane_s_graph_leads_from_the_manifest_to_the_labels_with_kinds_and_group(ui: UserInterface) -> None:
    ui.open_lane_graph("uwf700", n_checked=5)

    names = ("manifest", "roi_masks", "normalized_crops", "tiles", "coco_labels")
    left = [ui.node(name).rect["x"] for name in names]
    assert left == sorted(left)
    assert len(set(left)) == len(names)
    for kind in ("Polars", "Parquet", "NumPy", "File", "Python", "json"):
        assert ui.all(f"//*[text()='{kind}']"), kind
    assert ui.all("//*[normalize-space()='uwf700']")
    assert "Asset Group in" in ui.text()
    assert len(ui.all("//*[text()='2 partitions']")) == 4
    assert len(ui.all("//*[text()='15 partitions']")) == 1


def test_a_batch_s_page_shows_counts_durations_bytes_and_roi_statistics(ui: UserInterface) -> None:
    ui.open_partition("uwf700/roi_masks", GOOD_BATCH, "roi_area_ratio_mean")

    rows = {row.text.split("\n")[0]: row.text.split("\n")[1:] for row in ui.all("//tr[td]")}
    assert rows["n_images"] == ["5"]
    assert rows["n_done"] == ["4"]
    assert rows["n_quarantined"] == ["1"]
    assert "truncated" in "".join(rows["quarantine_reasons"])
    assert float(rows["duration_s"][0]) > 0
    assert int(rows["written_bytes"][0]) > 1000
    assert 0.12 < float(rows["roi_area_ratio_mean"][0]) < 1


@pytest.mark.parametrize(
    ("asset", "partition"),
    [
        ("uwf700/roi_masks", GOOD_BATCH),
        ("uwf700/normalized_crops", GOOD_BATCH),
        ("uwf700/coco_labels", "fold0%7Ctrain"),
    ],
)
def test_a_preview_is_a_picture_on_the_partition_s_page(ui: UserInterface, asset: str, partition: str) -> None:
    ui.open_partition(asset, partition, "preview")

    dialog = ui.open_dialog("preview")

    picture = ui.see_picture(dialog)
    assert int(str(picture.get_property("naturalWidth"))) >= 300
    assert picture.rect["width"] >= 300


def test_a_failed_check_shows_its_partition_and_which_images_are_broken_and_why(ui: UserInterface) -> None:
    ui.open_checks("uwf700/manifest")

    shown = ui.text()
    assert "manifest_integrity\nFailed" in shown
    assert BROKEN_BATCH in shown
    findings = ui.open_dialog("findings").text
    assert "ERROR: 2 of 3 images are quarantined" in findings
    assert "Uveitis-202.jpg: the JPEG end marker is missing; copy the file again" in findings
    assert "Uveitis-203.jpg: expected an image, found 0 bytes; copy the file again" in findings


def test_checks_of_a_run_over_a_range_of_batches_have_a_result_per_batch(ui: UserInterface) -> None:
    ui.open_checks("fgadr/tiles")

    assert "tile_reconstruction\nSucceeded" in ui.text()


def test_the_materialize_dialog_offers_the_batches(ui: UserInterface) -> None:
    ui.open_asset("uwf700/roi_masks", awaited="roi_area_ratio_mean")

    ui.open_materialize_dialog()
    ui.first("//*[contains(text(), 'Select a partition')]").click()

    for batch in (GOOD_BATCH, BROKEN_BATCH):
        assert ui.first(f"//label[contains(., '{batch}')] | //*[@role='menuitem'][contains(., '{batch}')]")
    assert "Select all (2)" in ui.text()


def test_no_page_of_a_lane_shows_whose_images_they_are(ui: UserInterface, sample: SampleInstance) -> None:
    secrets = (*CLINIC_PATIENTS, *CLINIC_PATIENTS.values())
    with sample.opened() as instance:
        run = instance.get_runs(limit=1)[0]
    assert run.job_name == "clinic_lane"

    def assert_silent() -> None:
        source = ui.driver.page_source
        assert not [secret for secret in secrets if secret in source], ui.driver.current_url

    ui.open_asset("clinic/manifest", "n_patients")
    assert_silent()
    for asset, awaited in (
        ("manifest", "n_patients"),
        ("roi_masks", "roi_area_ratio_mean"),
        ("normalized_crops", "preview"),
        ("tiles", "n_tiles"),
    ):
        ui.open_partition(f"clinic/{asset}", GOOD_BATCH, awaited)
        assert_silent()
    ui.open_checks("clinic/manifest")
    assert "truncated" in ui.open_dialog("findings").text
    assert_silent()
    ui.open_run(run.run_id, awaited="RUN_SUCCESS")
    assert_silent()
