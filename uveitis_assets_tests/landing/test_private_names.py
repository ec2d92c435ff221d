"""Raw patient ids, and file names that name patients, stay in the ledger."""

import polars as pl
import pytest

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
from uveitis_assets.landing.registration import LostPatientsError, register
from uveitis_assets.landing.splits_files import write_splits_files
from uveitis_assets_tests.landing.landing_samples import build, jpeg, land, lane


def written_bytes(store, *, with_ledger):
    ledger = store.ledger_file("lane").parent
    for path in sorted(store.root.rglob("*")):
        inside = path.is_relative_to(ledger)
        if path.is_file() and not path.is_relative_to(store.raw) and inside == with_ledger:
            yield path, path.read_bytes()
            if path.suffix == ".parquet":  # compressed pages would hide a name
                yield path, repr(pl.read_parquet(path).to_dicts()).encode()


def test_raw_patient_ids_and_private_file_names_stay_in_the_ledger(store):
    secrets = ["Doe-Jane-1971", "Roe-John-1980", "PATIENT-4711", "PATIENT-4712"]
    land(store, "Doe-Jane-1971/scan_Doe-Jane-1971_left.jpg", jpeg(1))
    land(store, "Roe-John-1980.jpg", jpeg(2))
    land(store, "Roe-John-1980-copy.jpg", jpeg(2))
    land(store, "Roe-John-1980-cut.jpg", jpeg(3)[:-99])
    (store.raw / "ds" / "Doe-Jane-1971" / "Roe-John-1980.jpg").symlink_to("nowhere")
    (store.raw / "ds" / "Roe-John-1980-loop").symlink_to(".")
    table = (
        b"image,patient,grade\nscan_Doe-Jane-1971_left.jpg,PATIENT-4711,2\nRoe-John-1980.jpg,PATIENT-4712,bad\n"
        b"Doe-Jane-1971-lost.jpg,PATIENT-4711,1\nRoe-John-1980 copy.jpg,PATIENT-4712,1\n"
    )
    land(store, "meta.csv", table + b"PATIENT-4711\n")
    options = {"csv": "meta.csv", "patient_column": "patient", "grade_column": "grade", "identify_by_content": True}
    dataset = lane(image_folder=options, batch_size=100)
    with pytest.raises(LostPatientsError, match=r"meta\.csv:6: expected 3 cells, found 1") as refused:
        register(store, dataset)
    assert not any(secret in str(refused.value) for secret in secrets)
    land(store, "meta.csv", table)
    report = register(store, dataset)
    assert "line 5 almost has a file's name" in repr(report.problems)
    summaries = build(store, dataset)
    (store.raw / "ds" / "Roe-John-1980.jpg").unlink()
    summaries += [build_manifest_part(store, dataset, SplitConfiguration(), "b00001")]
    summaries += [export_manifest(store, dataset, SplitConfiguration())]
    write_splits_files(store, "stage0", 5)
    for secret in secrets:
        for path, data in written_bytes(store, with_ledger=False):
            assert secret.encode() not in data, path
        assert secret not in repr(report)
        assert secret not in repr(summaries)
        assert any(secret.encode() in data for _, data in written_bytes(store, with_ledger=True))
    assert summaries[-2].quarantine_reasons == {"broken_symlink": 1, "missing": 1, "truncated": 1}
    assert len(report.problems) >= 4


def test_raw_patient_ids_of_a_csv_stay_in_the_ledger_without_hidden_names_too(store):
    land(store, "a.jpg")
    land(store, "b.jpg", b"")
    land(store, "meta.csv", b"image,patient\na.jpg,PATIENT-4711\nb.jpg,PATIENT-4712\nb.jpg,PATIENT-4712\n")
    dataset = lane(image_folder={"csv": "meta.csv", "patient_column": "patient"})
    report = register(store, dataset)
    summaries = build(store, dataset)
    export_manifest(store, dataset, SplitConfiguration())
    write_splits_files(store, "stage0", 5)
    assert b"PATIENT-47" in b"".join(data for _, data in written_bytes(store, with_ledger=True))
    assert b"PATIENT-47" not in b"".join(data for _, data in written_bytes(store, with_ledger=False))
    assert "PATIENT-47" not in repr((report, summaries))
