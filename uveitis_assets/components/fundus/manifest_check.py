"""Asset check of a fundus lane's manifest: rows, ledger, splits and quarantine."""

from collections import Counter
from functools import partial

import dagster as dg

from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.metadata import landing_problems
from uveitis_assets.landing.layouts import find_layout
from uveitis_assets.messages import count_of, enumeration
from uveitis_assets.orchestration.check_results import check_result, not_materialized
from uveitis_assets.orchestration.partitioned_check import Evaluate, partitioned_check
from uveitis_assets.storage.store import ArtefactStore


def manifest_integrity(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    """The check of every batch of the lane."""
    keys = LaneKeys.of(lane)

    def begin() -> Evaluate:
        store = ArtefactStore.from_environment()
        return partial(_evaluate_manifest, lane, _splits_of_lane(store, lane), _unknown_patients(store, lane))

    return partitioned_check(
        "manifest_integrity",
        keys.manifest,
        keys.batches,
        "Rows are unique, agree with the ledger and few are quarantined. In the whole lane every patient is in one "
        "split of every fold, and so is every image that another lane of the same splits has too. Quarantined images, "
        "what could not be taken from the landing folder, and file names that look like several images of one person "
        "without a rule that says so are listed.",
        begin,
    )


def _evaluate_manifest(
    lane: LaneConfiguration,
    lane_errors: list[str],
    lane_warnings: list[str],
    _instance: dg.DagsterInstance,
    batch: str,
) -> dg.AssetCheckResult:
    import polars as pl

    from uveitis_assets.landing.ledger import registered_images
    from uveitis_assets.landing.manifest_table import read_part

    store = ArtefactStore.from_environment()
    path = store.manifest_part(lane.name, batch)
    if not path.exists():
        return not_materialized(LaneKeys.of(lane).manifest, batch)
    part = read_part(path)
    listed = Counter(part["image_id"].to_list())
    registered = {image.image_id for image in registered_images(store, lane, batch)}
    errors = list(lane_errors)
    errors += [f"{name} is listed {n} times" for name, n in sorted(listed.items()) if n > 1]
    errors += [f"{name} is registered but not listed" for name in sorted(registered - set(listed))]
    errors += [f"{name} is listed but not registered" for name in sorted(set(listed) - registered)]
    usable = part.filter(pl.col("quarantine_reason").is_null())
    sizeless = usable.filter((pl.col("width") <= 0) | (pl.col("height") <= 0))["image_id"].to_list()
    errors += [f"{name} has no size" for name in sizeless]
    set_aside = part.filter(pl.col("quarantine_reason").is_not_null()).sort("image_id")
    quarantined = [
        f"{row['image_id']}: {row['quarantine_reason']}: {row['quarantine_detail']}"
        for row in set_aside.iter_rows(named=True)
    ]
    if len(quarantined) > lane.verify.max_quarantine_ratio * max(part.height, 1):
        errors.append(
            f"{len(quarantined)} of {part.height} images are quarantined, more than the share "
            f"{lane.verify.max_quarantine_ratio} of `verify.max_quarantine_ratio`"
        )
    in_folder = [f"landing folder: {problem}" for problem in landing_problems(store, lane)]
    warnings = [*lane_warnings, *quarantined, *in_folder]
    return check_result(errors, warnings, n_images=part.height, n_quarantined=len(quarantined))


def _splits_of_lane(store: ArtefactStore, lane: LaneConfiguration) -> list[str]:
    """What is wrong with the splits of the lane's images, over all batches and folds."""
    from uveitis_assets.labels.sanity import check_patients_disjoint
    from uveitis_assets.landing.manifest_table import batches_assigned_otherwise, read_manifest
    from uveitis_assets.landing.shared_images import images_in_two_splits
    from uveitis_assets.landing.split_assignment import read_split_assignment

    manifest = read_manifest(store, lane.name)
    errors = [
        finding.message for fold in range(lane.splits.folds) for finding in check_patients_disjoint(manifest, fold)
    ]
    if errors:
        errors.append(
            "patients are in several splits because of a copy of another patient's image, which follows that one "
            "(landing problem duplicate_of_other_patient: correct the patient ids or remove the copy), or because of "
            f"rows that the ledger does not have: run `uveitis-assets register {lane.name}`, then materialize "
            f"{lane.name}/manifest of all batches"
        )
    errors += images_in_two_splits(store, lane.name, lane.splits.name)
    try:
        batches = batches_assigned_otherwise(manifest, read_split_assignment(store.root, lane.splits).fingerprint)
    except ValueError as error:
        return [*errors, str(error)]
    if batches:
        errors.append(
            f"{count_of(batches, 'batch', 'batches')} not assigned by the present `splits`: "
            f"{enumeration(batches, 10)}; materialize {lane.name}/manifest[{batches[0]}] again, which assigns all "
            "batches alike, then the labels"
        )
    return errors


def _unknown_patients(store: ArtefactStore, lane: LaneConfiguration) -> list[str]:
    """Images of the whole lane that seem to be of one person, where nothing but file names tells patients."""
    from uveitis_assets.landing.layouts.paired_names import paired_names
    from uveitis_assets.landing.ledger import registered_paths

    if lane.patient_rule or not find_layout(lane.layout).patients_from_names:
        return []
    return [
        f"{found.n_images} file names differ in {found.kind} only and look like images of {found.n_persons} "
        f"{'person' if found.n_persons == 1 else 'persons'}, but each image counts as a patient of its own, so that a "
        "person may be in train and in test: say where the patients stand, with `patients: {csv: ...}` or "
        f"`patients: {{pattern: '{found.pattern}'}}`, and register again"
        for found in paired_names(registered_paths(store, lane.name))
    ]
