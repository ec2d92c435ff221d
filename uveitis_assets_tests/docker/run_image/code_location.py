"""The code location inside the test image: assets that look around, wait, or use up their memory."""

import os
import time
from pathlib import Path

import dagster as dg

SHARED = Path(os.environ.get("SHARED_FOLDER", "/nowhere"))


def _status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(field + ":"))


def _refusal_to_write(path: Path) -> str:
    try:
        path.write_text("changed")
    except OSError as error:
        return error.strerror or type(error).__name__
    return "written"


@dg.asset
def surroundings(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """What this container is and may."""
    shm = os.statvfs("/dev/shm")
    return dg.MaterializeResult(
        metadata={
            "user": f"{os.getuid()}:{os.getgid()}",
            "capabilities": _status("CapEff") + _status("CapBnd"),
            "no_new_privileges": _status("NoNewPrivs"),
            "shm_bytes": shm.f_frsize * shm.f_blocks,
            "engine_socket": str(
                [path for path in ("/var/run/docker.sock", "/run/docker.sock") if Path(path).exists()]
            ),
            "raw_image": Path("/data/raw/image.png").read_text(),
            "write_to_raw": _refusal_to_write(Path("/data/raw/image.png")),
            "secret": Path(os.environ["TRACKER_KEY_FILE"]).read_text(),
            "visible_gpus": os.environ["NVIDIA_VISIBLE_DEVICES"],
            "own_variable": os.environ.get("OWN_VARIABLE", ""),
        }
    )


@dg.asset(pool="gpu")
def waiting(context: dg.AssetExecutionContext) -> None:
    """Ends when the test releases it, and says in its log that it waits."""
    print("waiting for the test", flush=True)
    deadline = time.monotonic() + 120
    while not (SHARED / "release").exists():
        if time.monotonic() > deadline:
            raise dg.Failure("the asset was not released")
        time.sleep(0.1)


@dg.asset
def memory_hungry(context: dg.AssetExecutionContext) -> None:
    """Takes 2 GB, far beyond any limit that a test sets."""
    print("taking memory", flush=True)
    blocks = []
    for _ in range(2048):
        blocks.append(b"\1" * 2**20)
    print(len(blocks), flush=True)


@dg.asset(tags={"uveitis/gpu": "preferred"})
def prefers_gpu(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Would be faster on a GPU."""
    return dg.MaterializeResult(metadata={"visible_gpus": os.environ["NVIDIA_VISIBLE_DEVICES"]})


@dg.asset(tags={"uveitis/gpu": "required"})
def requires_gpu(context: dg.AssetExecutionContext) -> None:
    """Must never run in these tests."""


defs = dg.Definitions(
    assets=[surroundings, waiting, memory_hungry, prefers_gpu, requires_gpu],
    jobs=[dg.define_asset_job("with_a_gpu", selection=dg.AssetSelection.assets(surroundings, prefers_gpu))],
    executor=dg.in_process_executor,
)
