"""FGADR: ``Original_Images/<name>`` with one mask folder per lesion class, ``<Lesion>_Masks/<name>``.

A mask has the image's name or, where no other image could be meant, its stem with another image extension. An image
without any mask is unlabelled: a missing label is not a negative.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from uveitis_assets.landing.image_probe import is_image_name, probe_image
from uveitis_assets.landing.layouts.eye import eye_from_name
from uveitis_assets.landing.layouts.label_matching import LabelMatcher
from uveitis_assets.landing.layouts.registry import Layout
from uveitis_assets.landing.samples import LandedSample, LandingProblem, LandingScan

if TYPE_CHECKING:
    from uveitis_assets.landing.configuration import DatasetConfiguration
    from uveitis_assets.landing.folder_tree import LandingTree

_IMAGES = "Original_Images"


def scan(dataset: DatasetConfiguration, tree: LandingTree) -> LandingScan:
    """Read the layout; dataset tag the lane's name, patient the file's stem, notes ``mask_count=N``."""
    mask_folders = sorted({file.split("/", 1)[0] for file in tree.files if file.split("/", 1)[0].endswith("_Masks")})
    files = [file for file in tree.below(_IMAGES) if is_image_name(file)]
    matcher = LabelMatcher(files, extension_counts=True)
    masks = [[file for file in tree.below(folder) if is_image_name(file)] for folder in mask_folders]
    matches = [matcher.match(of_folder) for of_folder in masks]
    # Without its doubtful mask an image would look free of that lesion: it is unlabelled altogether.
    doubtful = frozenset[str]().union(*(match.doubtful_images for match in matches))
    images = []
    for file in files:
        found = (match.label_by_image.get(file) for match in matches)
        label_paths = () if file in doubtful else tuple(mask for mask in found if mask)
        stem = PurePosixPath(file).stem
        images.append(
            LandedSample(
                relative_path=file,
                dataset=dataset.name,
                patient=stem,
                eye=eye_from_name(stem),
                label_format="mask" if label_paths else "none",
                label_paths=label_paths,
                notes=f"mask_count={len(label_paths)}",
                patient_from_name=True,
            )
        )
    problems = [problem for match in matches for problem in match.problems]
    if not images:
        problems.append(
            LandingProblem(_IMAGES, "no_images", f"expected images in {_IMAGES}/, found none; land them there")
        )
    used = frozenset[str]().union(*(match.doubtful_labels.union(match.label_by_image.values()) for match in matches))
    unused = sorted(file for of_folder in masks for file in of_folder if file not in used)
    if unused:
        problems.append(
            LandingProblem(
                unused[0],
                "label_without_image",
                f"{len(unused)} masks have no image of the same name, the first is {unused[0]}; land the images or "
                "correct the names",
            )
        )
    return LandingScan(tuple(images), (*tree.problems, *problems))


LAYOUT = Layout("fgadr", scan, probe_image, lesion_labels=("mask",), patients_from_names=True)
