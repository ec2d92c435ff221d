"""FGADR: ``Original_Images/<name>`` with one mask folder per lesion class, ``<Lesion>_Masks/<name>``.

A mask bears the image's name or its stem with another image extension. An image without any mask is unlabelled: a
missing label is not a negative.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from unicodedata import normalize

from uveitis_assets.fundus.configuration import DatasetConfiguration
from uveitis_assets.fundus.eye import eye_from_name
from uveitis_assets.fundus.image_file import is_image_name
from uveitis_assets.fundus.landed import LandedImage, LandingProblem, LandingScan
from uveitis_assets.fundus.landing_tree import LandingTree

_IMAGES = "Original_Images"


def scan(dataset: DatasetConfiguration, tree: LandingTree) -> LandingScan:
    """Read the layout; dataset tag the lane's name, patient the file's stem, notes ``mask_count=N``."""
    mask_folders = sorted({file.split("/", 1)[0] for file in tree.files if file.split("/", 1)[0].endswith("_Masks")})
    masks_by_name: dict[str, dict[str, str]] = {}
    masks_by_stem: dict[str, dict[str, str]] = {}
    for folder in mask_folders:
        for file in tree.below(folder):
            if is_image_name(file):
                name = normalize("NFC", file.removeprefix(folder + "/"))
                masks_by_name.setdefault(folder, {})[name] = file
                masks_by_stem.setdefault(folder, {}).setdefault(_without_extension(name), file)
    used: set[str] = set()
    images = []
    for file in tree.below(_IMAGES):
        if not is_image_name(file):
            continue
        name = normalize("NFC", file.removeprefix(_IMAGES + "/"))
        found = (
            masks_by_name.get(folder, {}).get(name) or masks_by_stem.get(folder, {}).get(_without_extension(name))
            for folder in mask_folders
        )
        masks = tuple(mask for mask in found if mask)
        used.update(masks)
        stem = PurePosixPath(file).stem
        images.append(
            LandedImage(
                relative_path=file,
                dataset=dataset.name,
                patient=stem,
                eye=eye_from_name(stem),
                label_format="mask" if masks else "none",
                label_paths=masks,
                notes=f"mask_count={len(masks)}",
                patient_from_name=True,
            )
        )
    problems = []
    if not images:
        problems.append(
            LandingProblem(_IMAGES, "no_images", f"expected images in {_IMAGES}/, found none; land them there")
        )
    unused = sorted(file for folder in masks_by_name.values() for file in folder.values() if file not in used)
    if unused:
        problems.append(
            LandingProblem(
                unused[0],
                "label_without_image",
                f"{len(unused)} masks have no image of the same name, the first is {unused[0]}; land the images or "
                "mend the names",
            )
        )
    return LandingScan(tuple(images), (*tree.problems, *problems))


def _without_extension(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
