"""A training process that is really killed, between steps and while it writes its state, goes on to the same bits.

One that trains a finished run anew leaves that run usable.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from uveitis_assets.detection.checkpoints.fold_weights import fold_weights
from uveitis_assets.detection.data.split_file import split_to_plain
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets_tests.detection.squares import squares_split, store_at, tiny
from uveitis_assets_tests.detection.training.test_train_detector import Recorder, same

# The process trains on its job.json, but writes bytes in two halves with a pause between them.
_SLOW_WRITER = """
import os, sys, time
real = os.fdopen
class Slow:
    def __init__(self, stream): self.stream = stream
    def __enter__(self): return self
    def __exit__(self, *error): self.stream.close()
    def write(self, data):
        view = memoryview(data)
        self.stream.write(view[: len(view) // 2]); self.stream.flush(); time.sleep(0.2)
        self.stream.write(view[len(view) // 2 :])
os.fdopen = lambda handle, mode="r", *rest, **options: (
    Slow(real(handle, mode, *rest, **options)) if mode == "wb" else real(handle, mode, *rest, **options)
)
from uveitis_assets.detection.training.train_process import main
main(["--run", sys.argv[1]])
"""


def start(run: Path, *, slow: bool = False) -> subprocess.Popen[str]:
    command = (
        ["-c", _SLOW_WRITER, str(run)]
        if slow
        else ["-m", "uveitis_assets.detection.training.train_process", "--run", str(run)]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.e2e
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("moment", ["at a random step of a retraining", "while the state is written"])
def test_a_killed_process_is_continued_to_the_bits_of_one_that_lived(tmp_path: Path, moment: str) -> None:
    store = store_at(tmp_path)
    train, val = squares_split(store, 6), squares_split(store, 2, split="val", seed=1)
    configuration = tiny(training={"checkpoint_every_steps": 2, "epochs": 3})
    while_writing = moment == "while the state is written"
    run = store.run_folder("killed", 0)
    former = tiny(training={"epochs": 1})
    train_detector(store, configuration, store.run_folder("whole", 0), train, val, device="cpu")
    if not while_writing:
        train_detector(store, former, run, train, val, device="cpu")
    usable = None if while_writing else fold_weights(store, "killed", 0)
    job = {
        "root": str(store.root),
        "raw": str(store.raw),
        "device": "cpu",
        "configuration": configuration.model_dump(mode="json"),
        "train": split_to_plain(train),
        "val": split_to_plain(val),
    }
    write_json(run / "job.json", job)
    process = start(run, slow=while_writing)
    assert process.stdout is not None
    last_step = random.Random(time.time_ns()).randint(3, 8)
    for line in process.stdout:
        event = json.loads(line.split(" ", 1)[1])
        if event["kind"] == "stepped" and event["values"]["step"] >= last_step:
            break
    if while_writing:
        unfinished: list[Path] = []
        while not unfinished and process.poll() is None:
            unfinished = list((run / "checkpoints").glob(".last.pth.*"))
        assert unfinished
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    if usable is None:
        assert read_json(run / "run.json")["outcome"] is None, f"step {last_step}"
    else:
        assert read_json(run / "retraining" / "run.json")["outcome"] is None, f"step {last_step}"
        assert fold_weights(store, "killed", 0) == usable
        usable.load()
    continued = Recorder()
    train_detector(store, configuration, run, train, val, device="cpu", progress=continued)
    assert continued.steps[0] > 1, f"step {last_step}"
    whole, killed = (
        torch.load(store.run_folder(name, 0) / "checkpoints" / "last.pth", weights_only=True)
        for name in ("whole", "killed")
    )
    assert same(whole["model"], killed["model"]), f"step {last_step}"
    assert same(whole["average"], killed["average"]), f"step {last_step}"
    assert not list((run / "checkpoints").glob(".last.pth.*"))
    assert fold_weights(store, "killed", 0) != usable
