"""Landed images of two lanes, and imports of foreign files into them."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.importing.import_labels import import_labels
from uveitis_assets.labels.importing.request import ImportReport, ImportRequest
from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.storage.store import ArtefactStore

WIDTH, HEIGHT = 800, 600
UWF = DatasetConfiguration(name="uwf700", layout="uwf700", folder="uwf-700")
FGADR = DatasetConfiguration(name="fgadr", layout="fgadr", folder="fgadr")
OBB, MASK = LabelConfiguration(format="obb"), LabelConfiguration(format="mask")
ORIGINALS = "fgadr/Original_Images"


def land(store: ArtefactStore, *names: str, folder: str = "uwf-700/Images/Uveitis") -> None:
    for name in names:
        path = store.raw / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (90, 60, 30)).save(path)


def run(store: ArtefactStore, files: Mapping[str, str | bytes], **options: Any) -> ImportReport:
    """Import files of a folder, or with ``only`` that one of them, into the lane of boxes or of masks."""
    source = store.root / "foreign"
    for name, content in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    lane, labels = (FGADR, MASK) if options.pop("masks", False) else (UWF, OBB)
    return import_labels(store, lane, labels, ImportRequest(source=source / options.pop("only", ""), **options))


def refusals(report: ImportReport) -> list[str]:
    return [f"{refusal.place}: {refusal.reason}" for refusal in report.refusals]
