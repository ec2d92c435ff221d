"""Small landed files, a lane of them, and what stands in its ledger and manifest."""

import io
import json
import os

import numpy as np
from PIL import Image

from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.landing.ledger import read_ledger, registered_batches
from uveitis_assets.landing.manifest import build_manifest_part
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.landing.registration import register


def jpeg(seed=0, size=(64, 48), **options):
    """A JPEG whose content follows the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def land(store, name, data=None, folder="ds"):
    """Write a file into the dataset's raw folder; by default an image that follows the name."""
    path = store.raw / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(sum(name.encode()) * 131 + len(name)) if data is None else data)
    return path


def later(path, seconds=10):
    """Move a file's modification time, as a copy program or an editor would."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + seconds * 10**9))


def lane(layout="image_folder", name="lane", folder="ds", batch_size=4, **options):
    return DatasetConfiguration(name=name, layout=layout, folder=folder, batch_size=batch_size, **options)


def live(store):
    """Live entries of the ledger by path."""
    return {entry.relative_path: entry for entry in read_ledger(store, "lane") if entry.state == "live"}


def build(store, dataset, splits=None, batches=None):
    """Register and make the manifest of some batches, of all unless given."""
    register(store, dataset)
    splits = splits or SplitConfiguration()
    return [
        build_manifest_part(store, dataset, splits, batch)
        for batch in batches or registered_batches(store, dataset.name)
    ]


def rows(store, name="lane"):
    """Rows of the manifest by image id."""
    return {row["image_id"]: row for row in read_manifest(store, name).iter_rows(named=True)}


def splits_of(store, name="stage0", fold=0):
    """Content of a splits file."""
    return json.loads(store.splits_file(name, fold).read_text())
