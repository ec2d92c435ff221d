"""Small landed files for the tests of ledger and manifest."""

import io
import os

import numpy as np
from PIL import Image


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
