"""A layout whose samples are folders of files without pixels, as a family of images in series would register it."""

from uveitis_assets.landing.layouts import Layout
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import LandedSample, LandingProblem, LandingScan, SampleFacts


def scan(dataset, tree):
    folders = {}
    for file in tree.files:
        if file.endswith(".slice"):
            folders.setdefault(file.rpartition("/")[0], []).append(file)
    samples = [
        LandedSample(
            relative_path=folder,
            dataset=dataset.name,
            patient=folder,
            patient_from_name=True,
            files=tuple(files),
            label_format="mask" if f"{folder}.label" in tree.files else "none",
            label_paths=(f"{folder}.label",) if f"{folder}.label" in tree.files else (),
        )
        for folder, files in sorted(folders.items())
    ]
    problems = () if samples else (LandingProblem(".", "no_images", "expected folders of slices, found none"),)
    return LandingScan(tuple(samples), (*tree.problems, *problems))


def probe(data, name):
    if not data.startswith(b"slice"):
        raise QuarantineError("not_an_image", f"{name}: expected a slice, found {data[:5]!r}; replace the file")
    return SampleFacts()


SERIES = Layout("series", scan, probe)
