"""Key files are bound to the purpose of their variable."""

from pathlib import Path

import pytest

from uveitis_assets.storage.key_files import key_file

VARIABLE = "UVEITIS_WANDB_KEY_FILE"


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """The folder of a container's secrets, with the database's password and no key of the tracker."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "postgres_password").write_text("secret of the database")
    return folder


def test_a_variable_that_is_not_set_names_no_file(mounted: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert key_file(VARIABLE, mounted) is None
    monkeypatch.setenv(VARIABLE, "")
    assert key_file(VARIABLE, mounted) is None


def test_without_mounted_secrets_any_file_may_hold_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "key"))
    assert key_file(VARIABLE, tmp_path / "none") == tmp_path / "key"


def test_a_mounted_secret_is_read_by_its_own_variable(mounted: Path, monkeypatch: pytest.MonkeyPatch):
    (mounted / "uveitis_wandb_key").write_text("key")
    monkeypatch.setenv(VARIABLE, str(mounted / "uveitis_wandb_key"))
    assert key_file(VARIABLE, mounted) == mounted / "uveitis_wandb_key"


@pytest.mark.parametrize("way", ["postgres_password", "../secrets/postgres_password", "missing"])
def test_another_secret_is_refused_by_name_and_its_content_stays(
    mounted: Path, monkeypatch: pytest.MonkeyPatch, way: str
):
    monkeypatch.setenv(VARIABLE, str(mounted / way))
    with pytest.raises(ValueError, match=f"{VARIABLE}=.*: expected .*/uveitis_wandb_key, its own secret") as caught:
        key_file(VARIABLE, mounted)
    assert "secret of the database" not in str(caught.value)


def test_a_link_to_another_secret_is_refused(mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "link").symlink_to(mounted / "postgres_password")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "link"))
    with pytest.raises(ValueError, match="its own secret"):
        key_file(VARIABLE, mounted)


def test_where_the_own_secret_is_mounted_no_other_file_is_accepted(
    mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (mounted / "uveitis_wandb_key").write_text("key")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "ledger" / "patient_key"))
    with pytest.raises(ValueError, match="its own secret"):
        key_file(VARIABLE, mounted)
