"""Makes the pictures of detectors from what ``make demo`` left, for the README and the docs.

    python -m uveitis_assets_tests.e2e.detector_pictures --home .dagster_home --data data --out docs/images

Shows the detector's lane in the real UI, and an image with its detections beside its heat map.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.e2e.sample_instance import SampleInstance
from uveitis_assets_tests.e2e.screenshots import around, save
from uveitis_assets_tests.e2e.user_interface import UserInterface, chromium, webserver

_DETECTOR = "overfit_10"
_LANE = ("checkpoint", "evaluation", "predictions")
_SIDE_PX = 620
_GAP_PX = 12


def take_pictures(home: Path, data: Path, out: Path) -> None:
    """Write predictions.png and detector_lineage.png."""
    save(predictions_picture(ArtefactStore(root=data, raw=data / "raw")), out / "predictions.png")
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        sample = SampleInstance.create(Path(folder) / "instance")
        settings = (sample.home / "dagster.yaml").read_bytes()
        shutil.copytree(home, sample.home, dirs_exist_ok=True)
        (sample.home / "dagster.yaml").write_bytes(settings)
        shown = SampleInstance(sample.home, data)
        with webserver(shown, "uveitis_assets.definitions") as address, chromium() as driver:
            ui = UserInterface(driver, address)
            ui.set_window(1500, 760, scale=1.5)
            ui.open_lane_graph(_DETECTOR, n_checked=len(_LANE))
            save(around(ui, [ui.node(name) for name in _LANE], margin_px=28), out / "detector_lineage.png")


def predictions_picture(store: ArtefactStore) -> Image.Image:
    """The image with the most detections: they, and its heat map.

    Raises:
        ValueError: the detector has found nothing.
    """
    found = {
        content["image_id"]: len(content["predictions"])
        for path in sorted(store.prediction_file(_DETECTOR, "any").parent.glob("*.json"))
        if (content := read_json(path))["predictions"]
    }
    if not found:
        raise ValueError(f"{store.root}: expected detections of {_DETECTOR}, found none; run the demo first")
    key = artefact_key(max(found, key=lambda image_id: (found[image_id], image_id)))
    picture = Image.new("RGB", (2 * _SIDE_PX + _GAP_PX, _SIDE_PX), "white")
    for column, path in enumerate(
        (store.prediction_overlay(_DETECTOR, key), store.prediction_heat_map(_DETECTOR, key))
    ):
        with Image.open(path) as panel:
            picture.paste(panel.convert("RGB").resize((_SIDE_PX, _SIDE_PX)), (column * (_SIDE_PX + _GAP_PX), 0))
    return picture


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, default=Path(".dagster_home"), help="DAGSTER_HOME of the demo")
    parser.add_argument("--data", type=Path, default=Path("data"), help="UVEITIS_DATA of the demo")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    options = parser.parse_args()
    take_pictures(options.home, options.data.resolve(), options.out)


if __name__ == "__main__":
    main()
