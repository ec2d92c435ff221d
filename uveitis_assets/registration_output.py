"""What ``uveitis-assets register`` prints: what was found, and the commands to run next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uveitis_assets.cli_output import console
from uveitis_assets.messages import enumeration

if TYPE_CHECKING:
    import dagster as dg

    from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
    from uveitis_assets.landing.registration import RegistrationReport
    from uveitis_assets.storage.store import ArtefactStore

_LISTED = 10


def print_registration(lane: str, report: RegistrationReport, added: int) -> None:
    """Print what registering found: counts, the first ids of each kind, quarantined files and problems."""
    console.print(
        f"[bold]{lane}[/bold]: {report.n_images} images, {len(report.new)} new, {len(report.changed)} changed, "
        f"{len(report.renamed)} renamed, {len(report.relabelled)} relabelled, {len(report.gone)} gone, "
        f"{len(report.returned)} returned; {added} partition keys added",
        highlight=False,
        soft_wrap=True,
    )
    for kind in ("new", "changed", "renamed", "relabelled", "gone", "returned", "duplicates"):
        _print_list(kind, getattr(report, kind))
    if report.new_batches:
        _print_list("new batches", report.new_batches)
    if report.touched_batches:
        _print_list("batches to materialize again", report.touched_batches)
    _print_list("quarantined", [f"{image_id}: {reason}" for image_id, reason in sorted(report.quarantined.items())])
    _print_list("problems", [f"{problem.path}: {problem.detail}" for problem in report.problems])


def print_commands(store: ArtefactStore, lane: LaneConfiguration) -> None:
    """Print the commands that bring the lane up to date, as the sensors of a running daemon do."""
    from uveitis_assets.components.fundus.keys import LaneKeys
    from uveitis_assets.fundus.reference_color import present_reference_digest
    from uveitis_assets.fundus.stale_preprocessing import stale_preprocessing
    from uveitis_assets.landing.ledger import registered_batches
    from uveitis_assets.orchestration.partition_runs import contiguous_ranges

    stale = stale_preprocessing(store, lane.name, reference_color=present_reference_digest(store, lane.normalize))
    if not stale.batches:
        return
    keys = LaneKeys.of(lane)
    batches = registered_batches(store, lane.name)
    whole = set(stale.preprocessing)
    wanted: list[tuple[Sequence[dg.AssetKey], str, str]] = [
        *((keys.batch_assets, *keys_of) for keys_of in contiguous_ranges(batches, whole, len(batches))),
        *(
            ((keys.manifest,), *keys_of)
            for keys_of in contiguous_ranges(batches, set(stale.manifest) - whole, len(batches))
        ),
    ]
    if lane.labels.format != "none":
        partitions = keys.fold_splits.get_partition_keys()
        wanted.append(((keys.coco_labels,), partitions[0], partitions[-1]))
    console.print("  to do now what the sensors of a running daemon do by themselves:", highlight=False)
    for assets, first, last in wanted:
        selection = ",".join(key.to_user_string() for key in assets)
        chosen = f"--partition {first}" if first == last else f"--partition-range '{first}...{last}'"
        console.print(
            f"    dagster asset materialize -m uveitis_assets.definitions --select '{selection}' {chosen}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _print_list(title: str, items: Sequence[str]) -> None:
    if items:
        console.print(f"  {title}: {enumeration(items, _LISTED)}", markup=False, highlight=False, soft_wrap=True)
