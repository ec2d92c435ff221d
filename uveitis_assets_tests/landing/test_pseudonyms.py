"""Pseudonyms hide patients and stay the same."""

import hashlib
import re
import stat
import subprocess
import sys

import pytest

from uveitis_assets.landing.pseudonyms import PatientKeyError, patient_key, pseudonym


def test_a_pseudonym_is_p_and_16_hex_digits_of_keyed_blake2b():
    key = bytes(range(32))
    assert re.fullmatch(r"p[0-9a-f]{16}", pseudonym(key, "uwf700", "Jane"))
    expected = hashlib.blake2b(b"uwf700\0Jane", digest_size=8, key=key).hexdigest()
    assert pseudonym(key, "uwf700", "Jane") == "p" + expected


def test_pseudonyms_depend_on_key_dataset_and_patient():
    keys = (bytes(32), bytes(31) + b"1")
    values = {pseudonym(key, dataset, patient) for key in keys for dataset in ("a", "ab") for patient in ("bc", "c")}
    assert len(values) == 8


def test_the_key_is_made_once_and_read_only_by_its_owner(store):
    key = patient_key(store)
    assert len(key) == 32
    assert patient_key(store) == key
    path = store.patient_key_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["patient_key"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"abc", "3 characters that are not all hex digits"),
        (b"ab" * 16, "32 characters"),
        (b"", "0 characters"),
        (bytes(range(128, 160)), "bytes that are no text"),
    ],
)
def test_a_damaged_key_is_refused_not_replaced(store, content, found):
    patient_key(store)
    path = store.patient_key_file()
    path.write_bytes(content)
    message = rf"^{re.escape(str(path))}: expected 64 hex digits, found {found}; restore the key from the backup"
    with pytest.raises(PatientKeyError, match=message):
        patient_key(store)
    assert path.read_bytes() == content


def test_a_folder_in_the_place_of_the_key_is_named(store):
    store.patient_key_file().mkdir(parents=True)
    with pytest.raises(PatientKeyError, match="patient_key: expected 64 hex digits, found a folder; restore"):
        patient_key(store)


def test_a_lost_key_is_asked_for_where_pseudonyms_exist_and_not_replaced(store, tmp_path, monkeypatch):
    key = patient_key(store)
    store.manifest_part("lane", "b00001").parent.mkdir(parents=True)
    store.manifest_part("lane", "b00001").touch()
    assert patient_key(store) == key
    monkeypatch.setenv("UVEITIS_PATIENT_KEY_FILE", str(tmp_path / "not mounted" / "key"))
    with pytest.raises(PatientKeyError, match=r"not mounted/key: expected the key that the manifests' .* restore it"):
        patient_key(store)
    assert not (tmp_path / "not mounted").exists()
    (tmp_path / "not mounted").mkdir()
    (tmp_path / "not mounted" / "key").write_text(key.hex())
    assert patient_key(store) == key


def test_processes_racing_for_the_key_agree(store):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from uveitis_assets.storage.store import ArtefactStore\n"
        "from uveitis_assets.landing.pseudonyms import patient_key\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"print(patient_key(ArtefactStore(Path({str(store.root)!r}), Path({str(store.raw)!r}))).hex())\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    keys = {process.communicate()[0].strip() for process in processes}
    assert keys == {patient_key(store).hex()}
