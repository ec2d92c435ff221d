"""UWF-700: ``Images/<Disease>/<stem>.jpg`` with box labels ``Labels/<Disease>/<stem>.txt``.

A label belongs to the image of the same disease folder, if only one there has its stem. A missing label file means
unlabelled, an empty one means that the image was looked at and holds no lesion.
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


def scan(dataset: DatasetConfiguration, tree: LandingTree) -> LandingScan:
    """Read the layout; dataset tag the lane's name, patient the file's stem, notes ``disease=<folder>``."""
    labels = [
        file
        for file in tree.below("Labels")
        if file.lower().endswith(".txt") and PurePosixPath(file).name != "classes.txt"
    ]
    files = [file for file in tree.below("Images") if is_image_name(file)]
    match = LabelMatcher(files, extension_counts=False).match(labels)
    images = []
    for file in files:
        path = PurePosixPath(file)
        label = match.label_by_image.get(file)
        disease = path.parts[1] if len(path.parts) > 2 else ""
        images.append(
            LandedSample(
                relative_path=file,
                dataset=dataset.name,
                patient=path.stem,
                eye=eye_from_name(path.stem),
                label_format="obb" if label else "none",
                label_paths=(label,) if label else (),
                notes=f"disease={disease}" if disease else "",
                patient_from_name=True,
            )
        )
    problems = list(match.problems)
    used = match.doubtful_labels.union(match.label_by_image.values())
    unused = [file for file in labels if file not in used]
    if not images:
        problems.append(
            LandingProblem("Images", "no_images", "expected images in Images/<Disease>/, found none; land them there")
        )
    if unused:
        problems.append(
            LandingProblem(
                "Labels",
                "label_without_image",
                f"{len(unused)} label files have no image of the same folder and stem, the first is "
                f"{min(unused)}; land the images or correct the names",
            )
        )
    return LandingScan(tuple(images), (*tree.problems, *problems))


LAYOUT = Layout("uwf700", scan, probe_image, lesion_labels=("obb",), patients_from_names=True)
