"""Reading landed files: links, pipes, permissions and sizes."""

import os
import subprocess
import sys
import threading

import pytest

from uveitis_assets.landing.landed_files import MAX_FILE_BYTES, read_landed_file
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets_tests.patience import patience


def read_reason(root, path):
    with pytest.raises(QuarantineError) as caught:
        read_landed_file(root, path)
    return caught.value.reason


def test_a_file_and_a_link_inside_the_root_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b, c.jpg").write_bytes(b"bytes")
    (tmp_path / "link.jpg").symlink_to("in/a b, c.jpg")
    assert read_landed_file(tmp_path, "in/a b, c.jpg") == b"bytes"
    assert read_landed_file(tmp_path, "link.jpg") == b"bytes"
    assert read_landed_file(tmp_path, str(tmp_path / "link.jpg")) == b"bytes"


def test_a_root_that_is_itself_a_link_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"x")
    (tmp_path / "root").symlink_to("real")
    assert read_landed_file(tmp_path / "root", "a.jpg") == b"x"


def test_missing_broken_and_looping_files_are_named(tmp_path):
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert read_reason(tmp_path, "none.jpg") == "missing"
    assert read_reason(tmp_path, "none/none.jpg") == "missing"
    assert read_reason(tmp_path, "broken.jpg") == "broken_symlink"
    assert read_reason(tmp_path, "loop.jpg") == "broken_symlink"


def test_nothing_outside_the_root_is_read(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "root" / "link.jpg").symlink_to(tmp_path / "root-beside" / "secret.jpg")
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "root-beside")
    for path in (
        "link.jpg",
        "folder/secret.jpg",
        "../root-beside/secret.jpg",
        str(tmp_path / "root-beside/secret.jpg"),
    ):
        assert read_reason(tmp_path / "root", path) == "escapes_root"


def test_pipes_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    reasons = []
    thread = threading.Thread(
        target=lambda: reasons.extend(read_reason(tmp_path, name) for name in ("pipe.jpg", "folder.jpg")), daemon=True
    )
    thread.start()
    thread.join(patience(5))
    assert reasons == ["unreadable", "unreadable"]


def test_a_file_without_read_permission_is_unreadable(tmp_path):
    # The tests may run as root, who may read anything: a child process gives that up.
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.jpg").chmod(0)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from uveitis_assets.landing.landed_files import read_landed_file\n"
        "from uveitis_assets.landing.quarantine import QuarantineError\n"
        "os.getuid() or os.setuid(65534)\n"
        "try: read_landed_file(Path('.'), 'a.jpg')\n"
        "except QuarantineError as error: print(error.reason)\n"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == tmp_path.owner() and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "unreadable"


def test_a_message_has_the_given_name_instead_of_the_path(tmp_path):
    with pytest.raises(QuarantineError) as caught:
        read_landed_file(tmp_path, "Jane Doe.jpg", "img_1.jpg")
    assert "img_1.jpg" in str(caught.value)
    assert "Jane" not in str(caught.value)


def test_an_oversized_file_is_not_read(tmp_path):
    with (tmp_path / "a.tif").open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    assert read_reason(tmp_path, "a.tif") == "too_large"
