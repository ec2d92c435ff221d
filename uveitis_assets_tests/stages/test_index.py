"""Index and journal of one stage of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from uveitis_assets.fundus.stage_schemas import STAGE_SCHEMAS
from uveitis_assets.stages.batch_task import StageRecords
from uveitis_assets.stages.index import read_index_table, read_stage_index, write_stage_index
from uveitis_assets.stages.journal import StageJournal, read_stage_journal
from uveitis_assets_tests.storage.test_store import room_in_a_file


def row(image_id: str, **columns: Any) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "key": image_id.replace("::", "__"),
        "dataset": "x",
        "content_hash": "00",
        "fingerprint": "11",
        "quarantine_reason": None,
        "quarantine_detail": None,
        "method": "threshold",
        "fallbacks": ["uwf: too small, 0.01"],
        "area_ratio": 1 / 3,
        "border_touch_ratio": 0.1 + 0.2,
        "width": 3900,
        "height": 3072,
    } | columns


def test_rows_come_back_unchanged_and_in_the_order_of_their_ids(tmp_path: Path) -> None:
    rows = [row("x::b"), row("x::a", area_ratio=1e-17), row("x::é, 1")]
    write_stage_index(tmp_path / "b1.parquet", STAGE_SCHEMAS["roi_masks"], rows)
    back = read_stage_index(tmp_path / "b1.parquet")
    assert list(back) == ["x::a", "x::b", "x::é, 1"]
    assert [back[one["image_id"]] for one in rows] == rows


def test_equal_rows_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    rows = [row(f"x::{number:03d}") for number in range(300)]
    write_stage_index(tmp_path / "one.parquet", STAGE_SCHEMAS["roi_masks"], rows)
    write_stage_index(tmp_path / "two.parquet", STAGE_SCHEMAS["roi_masks"], reversed(rows))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_a_batch_of_quarantined_images_has_all_columns(tmp_path: Path) -> None:
    quarantined = {
        name: value
        for name, value in row("x::a", quarantine_reason="missing", quarantine_detail="gone").items()
        if name not in ("method", "fallbacks", "area_ratio", "border_touch_ratio", "width", "height")
    }
    for stage, schema in STAGE_SCHEMAS.items():
        write_stage_index(tmp_path / f"{stage}.parquet", schema, [quarantined])
        assert pl.read_parquet(tmp_path / f"{stage}.parquet").schema == schema
        back = read_stage_index(tmp_path / f"{stage}.parquet")["x::a"]
        assert back["quarantine_reason"] == "missing"


def test_an_absent_index_and_journal_are_empty(tmp_path: Path) -> None:
    assert read_stage_index(tmp_path / "none.parquet") == {}
    assert read_stage_journal(tmp_path / "none.journal") == {}


def test_a_file_that_is_no_index_is_named(tmp_path: Path) -> None:
    path = tmp_path / "b1.parquet"
    pl.DataFrame({"key": ["a"]}).write_parquet(path)
    for content in (b"PAR1 and then nothing", b"", path.read_bytes()):
        path.write_bytes(content)
        for read in (read_stage_index, read_index_table):
            with pytest.raises(ValueError, match=r"b1\.parquet: expected a stage index.*\[b1\] again"):
                read(path)


def test_the_last_line_about_an_image_counts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "b1.journal"
    with StageJournal(path) as journal:
        journal.finish("x::a", row("x::a"))
        journal.finish("x::b", row("x::b", area_ratio=0.1))
        journal.begin("x::a")
        journal.finish("x::b", row("x::b", area_ratio=0.1 + 0.2))
    assert read_stage_journal(path) == {"x::a": None, "x::b": row("x::b", area_ratio=0.30000000000000004)}


def test_a_torn_line_costs_only_itself_even_when_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "b1.journal"
    with StageJournal(path) as journal:
        journal.finish("x::a", row("x::a"))
    with path.open("ab") as stream:
        stream.write(b'{"image_id": "x::b", "row": {"met')
    with StageJournal(path) as journal:
        journal.finish("x::c", row("x::c"))
    assert list(read_stage_journal(path)) == ["x::a", "x::c"]


def test_a_line_without_room_on_the_disk_is_an_error_and_costs_no_later_line(tmp_path: Path) -> None:
    path = tmp_path / "b1.journal"
    with StageJournal(path) as journal:
        journal.finish("x::a", row("x::a"))
        with room_in_a_file(path.stat().st_size + 100), pytest.raises(OSError, match=r"b1\.journal"):
            journal.finish("x::b", row("x::b"))
        journal.finish("x::c", row("x::c"))
    assert list(read_stage_journal(path)) == ["x::a", "x::c"]


def test_a_complete_row_is_what_the_index_gives_back(tmp_path: Path) -> None:
    for stage, schema in STAGE_SCHEMAS.items():
        records = StageRecords(schema, tmp_path / f"{stage}.parquet", None)
        row = records.complete_row({"image_id": "x::a", "quarantine_reason": "missing"})
        write_stage_index(records.index, schema, [row])
        assert read_stage_index(records.index) == {"x::a": row} == records.indexed_rows()
