"""Command that expands one COCO file with pseudo-labels and prints counts, as the earlier script did.

    python -m uveitis_assets.detection.pseudo_label_command --base-coco labels_coco/uwf700_train_tiles.json \\
        --pred-dir preds/uveitis_ft --out-coco labels_coco/uwf700_train_tiles_pseudo.json

``pseudo_labels.expansion`` has the rules. Without split files the fold is the one that the base file trains: no image
of it is val or test there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uveitis_assets.detection.configuration import PseudoLabelConfiguration
from uveitis_assets.detection.pseudo_labels.expansion import (
    expand_coco,
    frames_reader,
    held_out_images,
    read_confident_predictions,
)
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore


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
        store: holds the images' frames and the split files.
        base_coco: the file to expand.
        pred_dir: folder of prediction files.
        out_coco: where the result goes.
        unlabeled_coco: images that nobody has labelled, in the same frame as the base.
        split_files: splits of everything that is evaluated; None: those of the installation for the fold that the base
            file trains.
        configuration: which detections become labels.

    Returns:
        ``images``, ``annotations`` and ``pseudo_annotations`` in the result, and ``out``, its path.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there are no split files, the base file fits none of the folds or several, or the files contradict
            each other.
    """
    base = read_json(base_coco)
    unlabelled = [read_json(unlabeled_coco)] if unlabeled_coco else []
    image_ids = {entry["image_id"] for file in (base, *unlabelled) for entry in file["images"]}
    if split_files is None:
        split_files = _splits_of_the_fold_trained_by(store, base_coco, {entry["image_id"] for entry in base["images"]})
    (expanded,), _ = expand_coco(
        [base],
        unlabelled,
        read_confident_predictions(pred_dir, image_ids),
        frames_of=frames_reader(store),
        held_out=held_out_images(split_files),
        configuration=configuration or PseudoLabelConfiguration(),
    )
    write_json(out_coco, expanded, indent=None)
    return {
        "images": len(expanded["images"]),
        "annotations": len(expanded["annotations"]),
        "pseudo_annotations": sum(bool(entry.get("pseudo")) for entry in expanded["annotations"]),
        "out": str(out_coco),
    }


def _splits_of_the_fold_trained_by(store: ArtefactStore, base_coco: Path, image_ids: set[str]) -> list[Path]:
    """Split files of the one fold that evaluates none of the images.

    Also those of splits that have no such fold.

    With the files of all folds every image would be held out, for each is validated in one of them.
    """
    every = sorted((store.root / "splits").glob("*.json"))
    splits = [store.splits_files(name) for name in sorted({path.stem.rpartition("_")[0] for path in every})]
    of_fold: dict[int, list[Path]] = {}
    for fold in sorted({fold for files in splits for fold in files}):
        others = {path for files in splits if fold in files for other, path in files.items() if other != fold}
        of_fold[fold] = [path for path in every if path not in others]
    if len(of_fold) < 2:
        return every
    fitting = [fold for fold, files in of_fold.items() if held_out_images(files).isdisjoint(image_ids)]
    if len(fitting) != 1:
        candidates = of_fold[min(fitting or of_fold)]
        example = next((path for path in candidates if _names_any_of(image_ids, path)), candidates[0])
        raise ValueError(
            f"{base_coco}: expected one fold in which none of its {len(image_ids)} images is val or test, found "
            f"{', '.join(map(str, fitting)) or 'none'} of {', '.join(map(str, of_fold))}; pass --split-file with the "
            f"split file of the fold that you will train, e.g. --split-file {example}"
        )
    return of_fold[fitting[0]]


def _names_any_of(image_ids: set[str], split_file: Path) -> bool:
    return any(not image_ids.isdisjoint(named) for named in read_json(split_file).values() if isinstance(named, list))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-coco", type=Path, required=True)
    parser.add_argument("--unlabeled-coco", type=Path)
    parser.add_argument("--pred-dir", type=Path, required=True)
    parser.add_argument("--min-score", type=float, default=PseudoLabelConfiguration().min_score)
    parser.add_argument("--out-coco", type=Path, required=True)
    parser.add_argument(
        "--split-file",
        type=Path,
        action="append",
        help="splits/<name>_<fold>.json whose val and test stay untouched; default: those of the fold that the base "
        "file trains",
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
