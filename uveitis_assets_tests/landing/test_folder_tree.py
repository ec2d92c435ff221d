"""Listing a landing folder: links, loops, hidden files, names."""

import os
from pathlib import Path

from uveitis_assets.landing.folder_tree import list_landing_tree


def place(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def reasons(tree):
    return sorted((problem.path, problem.reason) for problem in tree.problems)


def test_files_are_sorted_and_hidden_ones_left_out(tmp_path):
    folder = tmp_path / "ds"
    for name in ("b.jpg", "a b,c.jpg", "sub/é.jpg", ".hidden.jpg", ".git/x.jpg", "sub/.DS_Store", "z.txt"):
        place(folder / name)
    tree = list_landing_tree(folder, tmp_path)
    assert tree.files == ("a b,c.jpg", "b.jpg", "sub/é.jpg", "z.txt")
    assert tree.below("sub") == ("sub/é.jpg",)
    assert tree.problems == ()


def test_links_inside_the_raw_root_are_followed_once(tmp_path):
    folder = tmp_path / "ds"
    place(tmp_path / "other" / "deep" / "a.jpg")
    folder.mkdir()
    (folder / "linked").symlink_to("../other")
    (folder / "one.jpg").symlink_to("../other/deep/a.jpg")
    tree = list_landing_tree(folder, tmp_path)
    assert tree.files == ("linked/deep/a.jpg", "one.jpg")
    assert tree.problems == ()


def test_loops_end_and_are_reported(tmp_path):
    folder = tmp_path / "ds"
    place(folder / "sub" / "a.jpg")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    tree = list_landing_tree(folder, tmp_path)
    assert tree.files == ("self", "sub/a.jpg")  # a link to nothing is listed, reading it names the reason
    assert reasons(tree) == [("sub/up", "symlink_loop")]


def test_folder_links_out_of_the_raw_root_are_not_followed(tmp_path):
    place(tmp_path / "outside" / "secret.jpg")
    place(tmp_path / "raw" / "ds" / "a.jpg")
    (tmp_path / "raw" / "ds" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "raw" / "ds" / "file.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    tree = list_landing_tree(tmp_path / "raw" / "ds", tmp_path / "raw")
    assert tree.files == ("a.jpg", "file.jpg")
    assert reasons(tree) == [("link", "escapes_root")]


def test_a_missing_folder_and_an_unlistable_one_are_problems(tmp_path, monkeypatch):
    assert reasons(list_landing_tree(tmp_path / "none", tmp_path)) == [(".", "missing_folder")]
    place(tmp_path / "ds" / "locked" / "a.jpg")
    place(tmp_path / "ds" / "b.jpg")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    tree = list_landing_tree(tmp_path / "ds", tmp_path)
    assert tree.files == ("b.jpg",)
    assert reasons(tree) == [("locked/", "unreadable")]


def test_a_name_that_is_not_utf8_is_a_problem_and_its_neighbours_land(tmp_path):
    place(tmp_path / "ds" / "good.jpg")
    with open(os.fsencode(tmp_path / "ds") + b"/caf\xe9.jpg", "wb") as stream:  # noqa: PTH123
        stream.write(b"x")
    tree = list_landing_tree(tmp_path / "ds", tmp_path)
    assert tree.files == ("good.jpg",)
    assert [problem.reason for problem in tree.problems] == ["undecodable_name"]
    tree.problems[0].path.encode()
