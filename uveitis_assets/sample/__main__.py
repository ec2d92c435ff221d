"""Command line of the sample generator: ``python -m uveitis_assets.sample --out DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from uveitis_assets.sample import write_fgadr, write_many_small, write_uwf700


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what the arguments ask for, with one progress bar per data set; returns the exit status."""
    options = _parser().parse_args(arguments)
    width, height = options.uwf_size
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def bar(name: str, total: int) -> dict[str, Any]:
            task = progress.add_task(name, total=total)
            return {"workers": options.workers, "on_written": lambda _: progress.advance(task)}

        seed, out = options.seed, options.out
        if options.n_uwf:
            write_uwf700(out, options.n_uwf, seed, width, height, **bar("ultra-widefield", options.n_uwf))
        if options.n_fgadr:
            write_fgadr(out, options.n_fgadr, seed, options.fgadr_size, **bar("regular fundus", options.n_fgadr))
        if options.n_small:
            write_many_small(out / "small", options.n_small, seed, **bar("small", options.n_small))
    console.print(f"Sample images are in {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uveitis_assets.sample",
        description="Write synthetic retinal images in the layouts of uwf-700 and FGADR.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--n-uwf", type=_count, default=24, help="ultra-widefield images")
    parser.add_argument("--n-fgadr", type=_count, default=16, help="regular fundus images with masks")
    parser.add_argument("--n-small", type=_count, default=0, help="small JPEGs in a nested folder, for benchmarks")
    parser.add_argument("--seed", type=_count, default=0, help="same seed, same bytes")
    parser.add_argument("--uwf-size", type=_size, default=(1560, 1228), metavar="WxH", help="pixels")
    parser.add_argument("--fgadr-size", type=_count, default=1024, help="pixels of width and height")
    parser.add_argument("--workers", type=_count, default=None, help="threads; by default one per available core")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, found {text}")
    return value


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 1560x1228, found {text}")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
