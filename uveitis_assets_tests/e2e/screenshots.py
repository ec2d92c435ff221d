"""Makes the README's pictures from sample images: ``python -m uveitis_assets_tests.e2e.screenshots --out docs/images``.

The same instance and pages as in the browser tests, with more images and a picture taken of what is open.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from selenium.webdriver.remote.webelement import WebElement

from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.e2e import sample_instance
from uveitis_assets_tests.e2e.pipeline_picture import pipeline_picture
from uveitis_assets_tests.e2e.sample_instance import GOOD_BATCH, SampleInstance
from uveitis_assets_tests.e2e.user_interface import UserInterface, chromium, webserver

MAX_BYTES = 300_000
_LANE = ("manifest", "roi_masks", "normalized_crops", "tiles", "coco_labels")


def take_pictures(out: Path, n_images: int) -> None:
    """Write pipeline.png, lineage.png, batch_preview.png and failed_check.png."""
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
        sample = SampleInstance.create(Path(folder) / "instance")
        sample_instance.run_uwf700(sample, n_images, (1560, 1228))
        store = ArtefactStore(root=sample.data, raw=sample.data / "raw")
        save(pipeline_picture(store, "uwf700"), out / "pipeline.png")
        with webserver(sample, "uveitis_assets.definitions") as address, chromium() as driver:
            ui = UserInterface(driver, address)
            ui.set_window(1900, 700, scale=1.5)
            ui.open_lane_graph("uwf700", n_checked=5)
            nodes = [ui.node(name) for name in _LANE]
            save(around(ui, nodes, margin_px=28), out / "lineage.png")

            ui.set_window(1240, 760)
            ui.open_partition("uwf700/roi_masks", GOOD_BATCH, "preview")
            dialog = ui.open_dialog("preview")
            ui.see_picture(dialog)
            save(around(ui, [dialog], margin_px=-2), out / "batch_preview.png")

            sample_instance.land_broken_delivery(sample)
            ui.set_window(1500, 660)
            ui.open_checks("uwf700/manifest")
            ui.first("//*[text()='Hide navigation']").click()
            ui.open_dialog("findings")
            save(screen(ui), out / "failed_check.png")


def screen(ui: UserInterface) -> Image.Image:
    """All that the window shows."""
    png = base64.b64decode(ui.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    return Image.open(io.BytesIO(png)).convert("RGB")


def around(ui: UserInterface, elements: Sequence[WebElement], margin_px: int) -> Image.Image:
    """The part of the window with the elements and a margin."""
    shown = screen(ui)
    scale = shown.width / float(ui.driver.execute_script("return window.innerWidth"))
    boxes = [element.rect for element in elements]
    edges = (
        min(box["x"] for box in boxes) - margin_px,
        min(box["y"] for box in boxes) - margin_px,
        max(box["x"] + box["width"] for box in boxes) + margin_px,
        max(box["y"] + box["height"] for box in boxes) + margin_px,
    )
    left, top, right, bottom = (round(edge * scale) for edge in edges)
    return shown.crop((max(left, 0), max(top, 0), min(right, shown.width), min(bottom, shown.height)))


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG of at most 300 kB, with as many colours as fit.

    Raises:
        ValueError: even 32 colours do not fit.
    """
    for colors in (256, 128, 64, 32):
        reduced = picture.quantize(colors, kmeans=3, dither=Image.Dither.NONE)
        data = io.BytesIO()
        reduced.save(data, "PNG", optimize=True)
        if data.tell() <= MAX_BYTES:
            write_bytes(path, data.getvalue())
            print(f"{path}: {picture.width} x {picture.height} px, {data.tell() / 1000:.0f} kB, {colors} colours")
            return
    raise ValueError(f"{path}: expected at most {MAX_BYTES} bytes, found {data.tell()}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument("--images", type=int, default=9, help="sample images in the batch, the last one broken")
    options = parser.parse_args()
    take_pictures(options.out, options.images)


if __name__ == "__main__":
    main()
