"""What a lane makes in this process's environment, to hold the deployment's artefacts to."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from uveitis_assets.deployment.settings import DeploymentSettings
from uveitis_assets.landing.ledger import registered_batches
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.conftest import REPOSITORY

# What is made of images and labels; the records beside them hold times and durations.
_ARTEFACTS = ("manifests", "splits", "preproc", "labels_coco", "labels_debug")


def artefacts(root: Path, lane: str = "") -> dict[str, str]:
    """Digest of every artefact by its path below ``root``; of one lane only those with its name."""
    found = [file for folder in _ARTEFACTS for file in sorted((root / folder).rglob("*")) if file.is_file()]
    found = [file for file in found if lane in str(file.relative_to(root))]
    return {str(file.relative_to(root)): hashlib.blake2b(file.read_bytes()).hexdigest() for file in found}


def make_fgadr_in_place(settings: DeploymentSettings, work: Path) -> Path:
    """Run the lane fgadr in place over the images that the deployment registered; returns the root of what it made."""
    data, home = work / "data", work / "home"
    # The same patients need the same key, and with it the same pseudonyms.
    shutil.copytree(settings.data / "ledger", data / "ledger")
    home.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", home)
    variables = {"UVEITIS_DATA": str(data), "UVEITIS_RAW": str(settings.raw), "DAGSTER_HOME": str(home)}
    environment = os.environ | variables | {"PYTHONPATH": str(REPOSITORY), "UVEITIS_WORKERS": "2"}
    batches = registered_batches(ArtefactStore(data, settings.raw), "fgadr")
    batch_assets = ",".join(f"fgadr/{stage}" for stage in ("manifest", "roi_masks", "normalized_crops", "tiles"))
    materialize = ["dagster", "asset", "materialize", "-m", "uveitis_assets.definitions", "--select"]
    for arguments in (
        ["uveitis_assets.cli", "register", "fgadr"],
        [*materialize, batch_assets, "--partition-range", f"{batches[0]}...{batches[-1]}"],
        [*materialize, "fgadr/coco_labels", "--partition-range", "fold0|train...fold4|test"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return data
