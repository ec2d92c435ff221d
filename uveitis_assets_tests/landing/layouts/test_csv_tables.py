"""CSV files as people send them."""

import csv
import io
from random import Random

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


ROWS = [{"image": "a.png", "level": "2"}, {"image": "b.png", "level": ""}]


def cells_of(rows):
    return [row.cells for row in rows]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("image;level\na.png;2;\nb.png;;\n", [2, 3]),
        ("image;level\na.png;2;;;\nb.png;\n", [2, 3]),
        ("image,level\na.png,2,\nb.png,,\n", [2, 3]),
        ("image\tlevel\na.png\t2\t\t\nb.png\t\n", [2, 3]),
        ("image;level;\na.png;2\nb.png;;\n", [2, 3]),
        (";image;;level;\n;a.png;x;2;\n1;b.png;;;\n", [2, 3]),
        ("\n;;;\n\nimage;level\n\n;\na.png;2\n \t\nb.png;\n\n", [7, 9]),
        ("image|level\r\na.png|2\r\nb.png|\r\n", [2, 3]),
        ('"image, path";"LEVEL";image\nx, y;2;a.png\n;;b.png\n', [2, 3]),
    ],
    ids=[
        "delimiter at the end of rows",
        "several of them, in some rows",
        "commas",
        "tabs",
        "header with a delimiter at its end",
        "blank columns",
        "blank lines",
        "bars",
        "commas in a quoted name",
    ],
)
def test_blank_cells_columns_and_lines_do_no_harm(tmp_path, text, lines):
    rows, problems = read(tmp_path, text.encode())
    assert problems == []
    assert cells_of(rows) == ROWS
    assert [row.line for row in rows] == lines


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("first", "delimiter"),
    [
        ("sep=;", ";"),
        ("SEP=,", ","),
        ("sep=\t", "\t"),
        ('"sep=|"', "|"),
        ("sep=^", "^"),
        ("sep=;;;", ";"),
        ("sep=:", ":"),
    ],
)
def test_the_first_line_may_name_the_delimiter(tmp_path, encoding, first, delimiter):
    lines = [["image", "note,;", "level"], ["a.png", "x", "2"], ["b.png", "", ""]]
    quoted = [[f'"{cell}"' if cell == "note,;" else cell for cell in line] for line in lines]
    text = "\r\n".join([first, *(delimiter.join(line) for line in quoted)])
    rows, problems = read(tmp_path, text.encode(encoding))
    assert problems == []
    assert cells_of(rows) == ROWS
    assert [row.line for row in rows] == [3, 4]


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf_16_of_both_byte_orders(tmp_path, mark):
    encoding = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
    rows, problems = read(tmp_path, mark + "image;level\r\nÉtienne.png;2\r\n".encode(encoding))
    assert problems == []
    assert cells_of(rows) == [{"image": "Étienne.png", "level": "2"}]


@pytest.mark.parametrize(
    ("row", "found"),
    [("a.png,Doe, Jane,4711", 4), ("a.png,Doe", 2), ("a.png,Doe, Jane,", 4), ("a.png,1,5,", 4)],
)
def test_a_row_whose_cells_may_be_shifted_is_refused(tmp_path, row, found):
    text = f"image,name,level\nb.png,Roe,1\n{row}\n"
    rows, problems = read(tmp_path, text.encode())
    assert [row.cells["image"] for row in rows] == ["b.png"]
    assert [problem.reason for problem in problems] == ["bad_row"]
    assert f"t.csv:3: expected 3 cells, found {found}" in problems[0].detail
    assert "Doe" not in problems[0].detail


def test_a_quote_that_is_never_closed_does_not_swallow_rows(tmp_path):
    rows, problems = read(tmp_path, b'image;level\na;"x\ny"\nb;"1\nc;2\nd;3\n')
    assert [(row.line, row.cells) for row in rows] == [(3, {"image": "a", "level": "x\ny"})]
    assert [problem.reason for problem in problems] == ["bad_row"]
    assert "t.csv:4: from here on a quote is opened and never closed" in problems[0].detail


@pytest.mark.parametrize("data", [b"PK\x03\x04rest", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1rest", b"PAR1", b"%PDF-1.7"])
def test_workbooks_and_other_files_are_refused_with_what_to_do(tmp_path, data):
    rows, problems = read(tmp_path, data)
    assert rows == []
    assert [problem.reason for problem in problems] == ["not_csv"]
    assert "t.csv: expected a CSV file, found a" in problems[0].detail
    assert "save it as CSV" in problems[0].detail


@pytest.mark.parametrize(
    ("there", "said"),
    [("t.xlsx", "t.xlsx may be meant: save it as CSV"), ("T.CSV", "T.CSV may be meant"), ("u.csv", "")],
)
def test_a_table_that_is_not_there_says_which_file_may_be_meant(tmp_path, there, said):
    (tmp_path / there).write_bytes(b"x")
    _, problems = read_landing_csv(list_landing_tree(tmp_path, tmp_path), "t.csv", ("image",))
    assert [problem.reason for problem in problems] == ["missing"]
    assert said in problems[0].detail
    assert ("may be meant" in problems[0].detail) == bool(said)


def test_other_tables_are_read_as_the_csv_module_of_python_reads_them(tmp_path):
    random = Random(7)
    for _ in range(60):
        delimiter = random.choice(",;\t|")
        alphabet = 'ab 1,;|"é\n'
        rows = [["".join(random.choices(alphabet, k=random.randint(0, 6))) for _ in range(4)] for _ in range(5)]
        buffer = io.StringIO(newline="")
        csv.writer(buffer, delimiter=delimiter).writerows([["image", "x", "level", "y"], *rows])
        read_rows, problems = read(tmp_path, buffer.getvalue().encode(random.choice(["utf-8", "utf-8-sig", "utf-16"])))
        assert problems == []
        filled = [row for row in rows if any(cell.strip() for cell in row)]
        assert cells_of(read_rows) == [{"image": row[0].strip(), "level": row[2].strip()} for row in filled]
