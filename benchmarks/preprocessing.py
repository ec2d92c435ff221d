"""Speed and memory of preprocessing, as ratios to the floor "decode the input and encode exactly the PNGs written".

    python benchmarks/preprocessing.py                 # the ratios that `make bench` prints
    python benchmarks/preprocessing.py --flat 1000     # resident memory over 1,000 images as well

Every sample is taken in a fresh process, floor and pipeline in turn, because an allocator's state in one process
biases what comes second. All images are made once before, untimed, and then made again by what passes for newer code:
lanes run 256 images per process, so what a process does once (imports, colour tables: about half a second) would weigh
many times too much here; and a file that replaces another reuses its memory, while memory that a virtual machine has
never touched, or has given back to its host, takes ten times as long to write to (measured). Inputs are generated:
ultra-widefield JPEGs of 3900x3072 and regular PNGs of 1280x1280; the ROI method is `threshold` and all artefacts are
written. Ratios are medians over the repeats. On a busy machine the CPU column tells more than the wall
clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

METHODS = ("zscore_rgb", "grayworld", "clahe_luminance", "reinhard_lab_ref")
TARGETS = {"zscore_rgb": 1.5, "grayworld": 1.5, "clahe_luminance": 1.8, "reinhard_lab_ref": 1.8}
BATCH_SIZE = 100
# Distinct inputs; longer samples take them in turn.
N_INPUTS = 8
KINDS = {"uwf": "3900x3072 JPEG", "regular": "1280x1280 PNG"}
REFERENCE = {
    "kind": "regular_fundus_color_reference",
    "lab_mean": [95.0, 148.0, 160.0],
    "lab_std": [30.0, 9.0, 12.0],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="ultra-widefield images per sample; regular: 4x")
    parser.add_argument("--repeats", type=int, default=2, help="samples per figure")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--flat", type=int, default=0, help="also follow resident memory over so many images")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where to work; default %(default)s")
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sample:
        print(json.dumps(take_sample(**json.loads(arguments.sample))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(f"all artefacts are written to {arguments.folder}")
        run(Path(folder), arguments)


def default_folder() -> Path:
    """A file system in memory where there is one with room: the floor writes no files, so a slow disk would only add
    noise to the ratio."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 4 * 2**30:
        return memory
    return Path(tempfile.gettempdir())


def run(folder: Path, arguments: argparse.Namespace) -> None:
    for kind in arguments.kinds:
        n_images = arguments.images * (4 if kind == "regular" else 1)
        generate_inputs(folder / "raw", kind)
        print(f"\n{KINDS[kind]}, {n_images} images, median of {arguments.repeats}", flush=True)
        heads = ("floor", "1 worker", "ratio", "CPU", "target", "2 workers", "RSS")
        print(f"{'method':18}" + "".join(f"{head:>10}" for head in heads))
        for method in arguments.methods:
            samples: dict[str, list[dict[str, float]]] = {"one": [], "floor": [], "two": []}
            for _ in range(arguments.repeats):
                samples["one"].append(fresh(folder, "pipeline", kind, method, n_images=n_images))
                samples["floor"].append(fresh(folder, "floor", kind, method, n_images=n_images))
                samples["two"].append(fresh(folder, "pipeline", kind, method, n_images=n_images, workers=2))
            report(method, samples)
    if arguments.flat:
        follow_memory(folder, arguments)


def report(method: str, samples: dict[str, list[dict[str, float]]]) -> None:
    floor, one = (median(sample["wall_s"] for sample in samples[name]) for name in ("floor", "one"))
    ratio = median_ratio(samples, "one", "floor", "wall_s")
    cpu = median_ratio(samples, "one", "floor", "cpu_s")
    speedup = median_ratio(samples, "one", "two", "wall_s")
    peak = max(sample["peak_rss_mb"] for sample in samples["one"])
    print(
        f"{method:18}{floor * 1e3:7.0f} ms{one * 1e3:7.0f} ms{ratio:10.2f}{cpu:10.2f}{TARGETS[method]:10.1f}"
        f"{speedup:9.2f}x{peak:7.0f} MB",
        flush=True,
    )


def median_ratio(samples: dict[str, list[dict[str, float]]], above: str, below: str, column: str) -> float:
    return median(a[column] / b[column] for a, b in zip(samples[above], samples[below], strict=True))


def follow_memory(folder: Path, arguments: argparse.Namespace) -> None:
    print(f"\nresident memory of one worker over {arguments.flat} images, MB", flush=True)
    for kind in arguments.kinds:
        for method in ("zscore_rgb", "reinhard_lab_ref"):
            sample = fresh(folder, "memory", kind, method, n_images=arguments.flat)
            print(f"{kind:8} {method:18} {sample['rss_mb']}, peak {sample['peak_rss_mb']:.0f}", flush=True)


def fresh(folder: Path, mode: str, kind: str, method: str, *, workers: int = 1, n_images: int = 0) -> dict[str, Any]:
    """Take one sample in a process of its own."""
    sample = {"folder": str(folder), "mode": mode, "kind": kind, "method": method}
    sample |= {"workers": workers, "n_images": n_images}
    command = [sys.executable, __file__, "--sample", json.dumps(sample)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def generate_inputs(raw: Path, kind: str) -> None:
    import cv2

    from uveitis_assets.imaging.png import encode_png
    from uveitis_assets.sample.regular_fundus import render_regular_fundus
    from uveitis_assets.sample.ultra_widefield import render_ultra_widefield

    (raw / kind).mkdir(parents=True)
    for seed in range(N_INPUTS):
        if kind == "uwf":
            image = render_ultra_widefield(seed, 3900, 3072).image_rgb
            bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
            (raw / kind / f"{seed:04d}.jpg").write_bytes(data)
        else:
            (raw / kind / f"{seed:04d}.png").write_bytes(encode_png(render_regular_fundus(seed, 1280).image_rgb))


def take_sample(folder: str, mode: str, *, kind: str, method: str, workers: int, n_images: int) -> dict[str, Any]:
    """Measure once: seconds of wall clock and CPU per image, and resident memory, in MB."""
    place = Path(folder)
    inputs = sorted((place / "raw" / kind).iterdir())
    if mode == "floor":
        return measure_floor(place, inputs[:n_images])
    return measure_pipeline(place, inputs, method, workers, n_images, follow_memory=mode == "memory")


def measure_floor(place: Path, inputs: list[Path]) -> dict[str, Any]:
    import cv2
    import numpy as np

    from uveitis_assets.imaging.png import encode_png

    cv2.setNumThreads(1)
    wall = cpu = 0.0
    for number, path in enumerate(inputs):
        written = [
            np.ascontiguousarray(image if image.ndim == 2 else image[..., ::-1])
            for image in (
                cv2.imread(str(png), cv2.IMREAD_UNCHANGED)
                for png in sorted((place / "data").rglob("*.png"))
                if f"{number:05d}" in png.stem or f"{number:05d}" in png.parent.name
            )
        ]
        data = path.read_bytes()
        started, cpu_started = time.perf_counter(), time.process_time()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        sizes = [len(encode_png(pixels)) for pixels in written]
        wall += time.perf_counter() - started
        cpu += time.process_time() - cpu_started
        assert image is not None
        assert len(sizes) == 8, sizes
    return {"wall_s": wall / len(inputs), "cpu_s": cpu / len(inputs), "peak_rss_mb": peak_rss_mb()}


def measure_pipeline(
    place: Path, inputs: list[Path], method: str, workers: int, n_images: int, *, follow_memory: bool
) -> dict[str, Any]:
    from blake3 import blake3

    from uveitis_assets.fundus.configuration import STAGES, NormalizationConfiguration, PreprocessConfiguration
    from uveitis_assets.fundus.preprocess import preprocess_batch
    from uveitis_assets.landing.samples import RegisteredImage
    from uveitis_assets.storage.files import write_json
    from uveitis_assets.storage.store import ArtefactStore

    shutil.rmtree(place / "data", ignore_errors=True)
    store = ArtefactStore(root=place / "data", raw=place / "raw")
    write_json(store.reference_color_file(), REFERENCE)
    hashes = [blake3(path.read_bytes()).hexdigest() for path in inputs]
    images = []
    for number in range(n_images):
        slot = number % len(inputs)
        images.append(RegisteredImage(f"b::{number:05d}", "b", inputs[slot], hashes[slot]))
    configuration = PreprocessConfiguration(normalize=NormalizationConfiguration(method=method))
    batches = [(f"b{start:05d}", images[start : start + BATCH_SIZE]) for start in range(0, n_images, BATCH_SIZE)]
    resident: list[int] = []

    def follow(done: int, to_do: int) -> None:
        if done == to_do:
            resident.append(rss_mb())

    def preprocess(batch: str, members: list[RegisteredImage], **options: Any) -> None:
        preprocess_batch(store, "b", batch, lambda: members, configuration, STAGES, workers=workers, **options)

    if not follow_memory:
        for batch, members in batches:
            preprocess(batch, members, code_version="1")
    started, cpu_started = time.perf_counter(), time.process_time()
    for batch, members in batches:
        preprocess(batch, members, code_version="2", progress=follow if follow_memory else None)
        if follow_memory:  # a long run need not fill the disk
            shutil.rmtree(store.root / "preproc")
            write_json(store.reference_color_file(), REFERENCE)
    return {
        "wall_s": (time.perf_counter() - started) / n_images,
        "cpu_s": (time.process_time() - cpu_started) / n_images,
        "peak_rss_mb": peak_rss_mb(),
        "rss_mb": resident,
    }


def rss_mb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def peak_rss_mb() -> float:
    """High-water mark of this program alone: ru_maxrss begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
