"""Seconds per image of the SAM 2 ROI method: CPU and GPU, float32 and bfloat16, one image a pass or four.

The weights are random, because times do not depend on them; how far bfloat16 moves the logits is shown too, but only
official weights can say what that does to masks. Each sample runs in a process of its own and the settings take turns,
so that neither the allocator's state nor a busy minute of the machine favours one of them.

    python benchmarks/sam2_roi.py --models t b+ --rounds 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = (614, 768)


def fundus_like_image(seed: int) -> NDArray[np.uint8]:
    """An orange disc with smooth texture on black, RGB uint8."""
    height, width = IMAGE_SIZE
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    inside = np.hypot(rows - height / 2, columns - width / 2) < 0.46 * height
    texture = np.repeat(np.repeat(generator.normal(0, 12, (height // 2, width // 2)), 2, 0), 2, 1)
    image = (np.array([190.0, 95.0, 45.0]) + texture[..., None]) * inside[..., None]
    clipped: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return clipped


def load(setting: dict[str, Any], precision: str) -> Any:
    from uveitis_assets.fundus.configuration import Sam2Configuration
    from uveitis_assets.fundus.roi.sam2 import load_sam2_segmenter

    configuration = Sam2Configuration(
        model_cfg=f"configs/sam2.1/sam2.1_hiera_{setting['model']}.yaml",
        device=setting["device"],
        batch_size=setting["batch_size"],
    )
    return load_sam2_segmenter(configuration, Path(setting["checkpoint"]), precision=precision)  # type: ignore[arg-type]


def measure(setting: dict[str, Any]) -> dict[str, float]:
    """One sample in this process: a warm-up pass, then one timed call."""
    import torch

    if setting["threads"]:
        torch.set_num_threads(setting["threads"])
    segmenter = load(setting, setting["precision"])
    images = [fundus_like_image(seed) for seed in range(setting["n_images"])]
    segmenter.segment(images[: setting["batch_size"]])
    wall, processor = time.perf_counter(), time.process_time()
    segmenter.segment(images)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    if setting["device"] == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "wall_s": wall / len(images),
        "processor_s": processor / len(images),
        "memory_gb": memory / 1e9,
    }


def compare_precisions(setting: dict[str, Any]) -> dict[str, float]:
    """How far bfloat16 is from float32 on one image: logits' relative error, scores, and pixels that change side."""
    caught: dict[str, Any] = {}
    for precision in ("float32", "bfloat16"):
        segmenter = load(setting, precision)
        handle = segmenter._model.sam_mask_decoder.register_forward_hook(
            lambda _module, _arguments, output, precision=precision: caught.update(
                {precision: [tensor.float().cpu().numpy() for tensor in output[:2]]}
            )
        )
        segmenter.segment([fundus_like_image(0)])
        handle.remove()
    (logits, scores), (rounded_logits, rounded_scores) = caught["float32"], caught["bfloat16"]
    return {
        "relative_logit_error": float(np.linalg.norm(rounded_logits - logits) / np.linalg.norm(logits)),
        "max_score_difference": float(np.abs(rounded_scores - scores).max()),
        "changed_pixel_ratio": float(((rounded_logits > 0) != (logits > 0)).mean()),
    }


def write_random_checkpoint(setting: dict[str, Any]) -> None:
    """Seeded random weights in the official checkpoint format."""
    import torch

    from uveitis_assets.fundus.configuration import Sam2Configuration
    from uveitis_assets.fundus.roi.sam2_model import build_sam2_model

    model = build_sam2_model(Sam2Configuration(model_cfg=f"configs/sam2.1/sam2.1_hiera_{setting['model']}.yaml"))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.trunc_normal_(parameter.data, std=0.02, generator=generator)
    torch.save({"model": model.state_dict()}, setting["checkpoint"])


WORK = {"measure": measure, "compare": compare_precisions, "write": write_random_checkpoint}


def in_fresh_process(work: str, setting: dict[str, Any]) -> Any:
    completed = subprocess.run(
        [sys.executable, __file__, "--work", work, json.dumps(setting)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(completed.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["b+"], choices=["t", "s", "b+", "l"])
    parser.add_argument("--devices", nargs="+", choices=["cpu", "cuda"], help="default: those that are there")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--images", type=int, default=4, help="images per sample")
    parser.add_argument("--rounds", type=int, default=3, help="samples per setting")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    arguments = parser.parse_args()

    import torch

    devices = arguments.devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            {
                "model": model,
                "device": device,
                "precision": precision,
                "batch_size": batch_size,
                "n_images": arguments.images,
                "threads": arguments.threads,
                "checkpoint": str(Path(folder) / f"{model}.pt"),
            }
            for model, device, precision, batch_size in itertools.product(
                arguments.models, devices, arguments.precisions, arguments.batch_sizes
            )
        ]
        for model in arguments.models:
            in_fresh_process("write", next(setting for setting in settings if setting["model"] == model))
        samples: list[list[dict[str, float]]] = [[] for _ in settings]
        for _ in range(arguments.rounds):
            for setting, collected in zip(settings, samples, strict=True):
                collected.append(in_fresh_process("measure", setting))
        print("model device precision batch | wall s/image (min) | processor s/image | memory GB")
        for setting, collected in zip(settings, samples, strict=True):
            wall = [sample["wall_s"] for sample in collected]
            processor = statistics.median(sample["processor_s"] for sample in collected)
            memory = max(sample["memory_gb"] for sample in collected)
            print(
                f"{setting['model']:5} {setting['device']:6} {setting['precision']:9} {setting['batch_size']:5} | "
                f"{statistics.median(wall):12.3f} ({min(wall):.3f}) | {processor:17.3f} | {memory:9.2f}"
            )
        for model, device in itertools.product(arguments.models, devices):
            setting = next(item for item in settings if (item["model"], item["device"]) == (model, device))
            difference = in_fresh_process("compare", setting)
            print(f"{model} on {device}, bfloat16 against float32 (random weights): {json.dumps(difference)}")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--work":
        print(json.dumps(WORK[sys.argv[2]](json.loads(sys.argv[3]))))
    else:
        main()
