"""CSV files as people send them."""

import pytest

from uveitis_assets.landing.folder_tree import list_landing_tree
from uveitis_assets.landing.layouts.csv_tables import read_landing_csv


def read(tmp_path, data, required=("image", "level"), optional=()):
    (tmp_path / "t.csv").write_bytes(data)
    return read_landing_csv(list_landing_tree(tmp_path, tmp_path), "t.csv", required, optional)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "latin-1", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_delimiters_and_line_ends(tmp_path, encoding, delimiter, newline):
    text = newline.join(
        delimiter.join(row) for row in (["image", "note", "level"], ["œil" if encoding[0] == "u" else "été", "x", "2"])
    )
    rows, problems = read(tmp_path, text.encode(encoding))
    assert problems == []
    assert rows[0].cells == {"image": "œil" if encoding[0] == "u" else "été", "level": "2"}
    assert rows[0].line == 2


def test_quoted_commas_spaces_and_column_names_in_any_case(tmp_path):
    rows, problems = read(tmp_path, b'Level, IMAGE ,x\n 3 ,"a, b.jpg",\n', optional=("X", "absent"))
    assert problems == []
    assert rows[0].cells == {"image": "a, b.jpg", "level": "3", "X": ""}


def test_missing_columns_name_file_found_and_expected(tmp_path):
    rows, problems = read(tmp_path, b"picture,level\na,1\n")
    assert rows == []
    assert problems[0].reason == "missing_columns"
    assert "t.csv: expected the columns image, level, found picture, level; add image" in problems[0].detail


def test_the_first_row_of_a_table_without_a_header_is_not_repeated(tmp_path):
    _, problems = read(tmp_path, b"Jane Doe;1_left;2\nRichard Roe;2_left;1\n")
    assert problems[0].reason == "missing_columns"
    assert "found none of them in the 3 cells of line 1" in problems[0].detail
    assert "Doe" not in problems[0].detail


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\x00\x01\x02\xff"])
def test_files_that_are_no_tables_are_a_problem(tmp_path, data):
    rows, problems = read(tmp_path, data)
    assert rows == []
    assert [problem.reason for problem in problems] == ["missing_columns"]


def test_ragged_rows_are_named_by_line_and_the_others_read(tmp_path):
    rows, problems = read(tmp_path, b"image,level\na,1\nJane Doe,1,2\n\nb,2\n")
    assert [(row.line, row.cells["image"]) for row in rows] == [(2, "a"), (5, "b")]
    assert [problem.reason for problem in problems] == ["bad_row"]
    assert "t.csv:3: expected 2 cells, found 3" in problems[0].detail
    assert "Jane" not in problems[0].detail


def test_a_missing_csv_and_one_outside_the_root_are_problems(tmp_path):
    (tmp_path / "raw" / "ds").mkdir(parents=True)
    (tmp_path / "secret.csv").write_text("image,level\na,1\n")
    (tmp_path / "raw" / "ds" / "link.csv").symlink_to(tmp_path / "secret.csv")
    tree = list_landing_tree(tmp_path / "raw" / "ds", tmp_path / "raw")
    assert read_landing_csv(tree, "none.csv", ("image",))[1][0].reason == "missing"
    assert read_landing_csv(tree, "link.csv", ("image",))[1][0].reason == "escapes_root"
    assert read_landing_csv(tree, "../../secret.csv", ("image",))[1][0].reason == "escapes_root"
