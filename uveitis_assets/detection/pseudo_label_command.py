"""The command that expands one COCO file with pseudo-labels and prints what it holds, as the earlier script did.

    python -m uveitis_assets.detection.pseudo_label_command --base-coco labels_coco/uwf700_train_tiles.json \\
        --pred-dir preds/uveitis_ft --out-coco labels_coco/uwf700_train_tiles_pseudo.json

Which detections become labels, and where, is said in ``pseudo_labels``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uveitis_assets.detection.configuration import PseudoLabelConfiguration
from uveitis_assets.detection.pseudo_labels import (
    expand_coco,
    frames_reader,
    held_out_images,
    read_confident_predictions,
)
from uveitis_assets.storage import ArtefactStore, read_json, write_json


def expand_coco_file(
    store: ArtefactStore,
    base_coco: Path,
    pred_dir: Path,
    out_coco: Path,
    *,
    unlabeled_coco: Path | None = None,
    split_files: Sequence[Path] | None = None,
    configuration: PseudoLabelConfiguration | None = None,
) -> dict[str, Any]:
    """Expand one COCO file, of global images or of tiles, and write the result.

    Args:
        store: where the images' frames and the split files lie.
        base_coco: the file to expand.
        pred_dir: folder of prediction files.
        out_coco: where the result goes.
        unlabeled_coco: images that nobody has labelled, in the same frame as the base.
        split_files: splits of everything that is evaluated; None: all of the installation.
        configuration: which detections become labels.

    Returns:
        ``images``, ``annotations`` and ``pseudo_annotations`` in the result, and ``out``, its path.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there are no split files, or the files contradict each other.
    """
    base = read_json(base_coco)
    unlabelled = [read_json(unlabeled_coco)] if unlabeled_coco else []
    image_ids = {entry["image_id"] for file in (base, *unlabelled) for entry in file["images"]}
    every_split = sorted((store.root / "splits").glob("*.json"))
    (expanded,), _ = expand_coco(
        [base],
        unlabelled,
        read_confident_predictions(pred_dir, image_ids),
        frames_of=frames_reader(store),
        held_out=held_out_images(every_split if split_files is None else split_files),
        configuration=configuration or PseudoLabelConfiguration(),
    )
    write_json(out_coco, expanded, indent=None)
    return {
        "images": len(expanded["images"]),
        "annotations": len(expanded["annotations"]),
        "pseudo_annotations": sum(bool(entry.get("pseudo")) for entry in expanded["annotations"]),
        "out": str(out_coco),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-coco", type=Path, required=True)
    parser.add_argument("--unlabeled-coco", type=Path)
    parser.add_argument("--pred-dir", type=Path, required=True)
    parser.add_argument("--min-score", type=float, default=PseudoLabelConfiguration().min_score)
    parser.add_argument("--out-coco", type=Path, required=True)
    parser.add_argument(
        "--split-file", type=Path, action="append", help="splits/<name>_<fold>.json whose val and test stay untouched"
    )
    given = parser.parse_args(arguments)
    result = expand_coco_file(
        ArtefactStore.from_environment(),
        given.base_coco,
        given.pred_dir,
        given.out_coco,
        unlabeled_coco=given.unlabeled_coco,
        split_files=given.split_file,
        configuration=PseudoLabelConfiguration(min_score=given.min_score),
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
