"""Time of loading the definitions over the time of `import dagster`, each in fresh processes, interleaved.

Every run worker, code server and command pays it. The target is a ratio of at most 2 with no torch, cv2 or sam2
loaded.
"""

import argparse
import statistics
import subprocess
import sys
import time

BARE = "import dagster"
LOADED = "from uveitis_assets.definitions import defs; defs()"


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs the code."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print medians and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    seconds(BARE), seconds(LOADED)
    pairs = [(seconds(BARE), seconds(LOADED)) for _ in range(arguments.runs)]
    ratios = [loaded / bare for bare, loaded in pairs]
    print(f"import dagster       {statistics.median(bare for bare, _ in pairs):.2f} s")
    print(f"load the definitions {statistics.median(loaded for _, loaded in pairs):.2f} s")
    print(f"ratio                {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f}; <= 2)")


if __name__ == "__main__":
    main()
