"""Runs ``uveitis-assets import-labels`` with the options as typed, and prints what it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from uveitis_assets.cli_output import console, fail, printable
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.storage.store import ArtefactStore

if TYPE_CHECKING:
    from uveitis_assets.labels.importing.request import ImportReport


def run_import(
    store: ArtefactStore,
    lane: LaneConfiguration,
    source: Path,
    *,
    label_format: str,
    units: str | None,
    first_class: int | None,
    names: Path | None,
    mapping: Sequence[str],
    min_confidence: float | None,
    replace: bool,
    dry_run: bool,
) -> bool:
    """Import labels and print the report; false when rows were refused."""
    from uveitis_assets.labels.importing.foreign import ForeignFileError, Units
    from uveitis_assets.labels.importing.import_labels import import_labels
    from uveitis_assets.labels.importing.request import FORMATS, ForeignFormat, ImportRequest

    if label_format not in FORMATS:
        fail(f"--format: expected one of {', '.join(FORMATS)}, found {label_format}")
    if units not in {None, "pixel", "share"}:
        fail(f"--units: expected pixel or share, found {units}")
    request = ImportRequest(
        source=source,
        format=cast("ForeignFormat", label_format),
        units=cast("Units | None", units),
        first_class=first_class,
        names=names,
        classes=_parse_classes(mapping),
        min_confidence=min_confidence,
        replace=replace,
        dry_run=dry_run,
    )
    try:
        report = import_labels(store, lane, lane.labels, request)
    except ForeignFileError as error:
        fail(f"{error}; nothing was written")
    except OSError as error:
        fail(
            f"{error.filename}: {error.strerror}; label files are written below UVEITIS_RAW ({store.raw}); those of "
            "images before this one are: import again with --replace"
        )
    _print_report(lane.name, report, dry_run=dry_run)
    return not report.refusals


def _print_report(lane: str, report: ImportReport, *, dry_run: bool) -> None:
    verb = "would write" if dry_run else "wrote"
    lines = [
        f"{lane}: {verb} {len(report.written)} label files of {report.n_images} images with {report.n_lesions} "
        f"lesions; {report.n_left_out} rows left out as asked, {len(report.refusals)} refused"
    ]
    if report.removed:
        verb = "would remove" if dry_run else "removed"
        lines.append(f"  {verb} {len(report.removed)} earlier label files of these images: {', '.join(report.removed)}")
    lines += [f"  refused {refusal.place}: {refusal.reason}" for refusal in report.refusals]
    if report.images_left_out:
        lines.append(
            f"  no label file for {len(report.images_left_out)} images of which something is refused: correct that and "
            "import again"
        )
    if report.written and not dry_run:
        lines.append(f"next: uveitis-assets register {lane}")
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _parse_classes(mapping: Sequence[str]) -> dict[str, str]:
    classes: dict[str, str] = {}
    for text in mapping:
        name, equals, target = (part.strip() for part in text.rpartition("="))
        if not equals or not name:
            fail(f"--class: expected <class of the files>=<class of the lane>, found {text!r}; nothing was written")
        if classes.setdefault(name, target) != target:
            fail(f"--class: found {name} for {classes[name]!r} and for {target!r}, expected one; nothing was written")
    return classes
