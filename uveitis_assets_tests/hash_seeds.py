"""One program in several processes whose `hash()` differs: what depends on it shows."""

import os
import subprocess
import sys


def outputs_under_hash_seeds(program: str) -> set[str]:
    """What the program prints, in three processes with different hash seeds; one element where they agree."""
    return {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "random")
    }
