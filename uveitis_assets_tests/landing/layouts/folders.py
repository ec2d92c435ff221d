"""Folders laid out as datasets, and what a scan of them finds."""

from unicodedata import normalize

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.layouts import scan_landing_folder

COMPOSED, DECOMPOSED = (normalize(form, "\u00e9") for form in ("NFC", "NFD"))


def scan(store, layout, **options):
    return scan_landing_folder(DatasetConfiguration(name="lane", layout=layout, folder="ds", **options), store)


def place(store, *names, data=b"x"):
    for name in names:
        path = store.raw / "ds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def table(store, name, text):
    place(store, name, data=text.encode() if isinstance(text, str) else text)


def by_path(result):
    return {image.relative_path: image for image in result.samples}


def reasons(result):
    return [problem.reason for problem in result.problems]


def labels_of(result):
    return {sample.relative_path: sample.label_paths for sample in result.samples}
