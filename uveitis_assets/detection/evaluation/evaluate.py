"""One evaluation of a detector: all metrics of its detections against labelled images.

Matching, COCO AP, FROC, counts and confusion at the operating score, and intervals over patients; ``figures`` and
``report`` show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import EvaluationConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.evaluation.average_precision import (
    AveragePrecision,
    CocoAveragePrecision,
    coco_average_precision,
)
from uveitis_assets.detection.evaluation.bootstrap import (
    Interval,
    bias_corrected_interval,
    patient_resamples,
    percentile_interval,
    resampled_average_precision,
    resampled_sensitivities,
)
from uveitis_assets.detection.evaluation.confusion import (
    Confusion,
    OperatingCounts,
    confusion_matrix,
    operating_counts,
)
from uveitis_assets.detection.evaluation.detection_limits import cut_by_max_detections, detections_that_count
from uveitis_assets.detection.evaluation.froc import Froc, free_response
from uveitis_assets.detection.evaluation.matching import (
    ScoredHits,
    best_first,
    in_fixed_order,
    match_images_at,
    pool,
)
from uveitis_assets.detection.evaluation.oriented_average_precision import (
    OrientedAveragePrecision,
    has_oriented_labels,
    oriented_average_precision,
)
from uveitis_assets.detection.inference.detections import Detections, GroundTruth


@dataclass(frozen=True, slots=True)
class Intervals:
    """95 % intervals over patients, None where a metric rests on lesions of fewer than two patients.

    Of the selection AP's mean, of each class's, and of the FROC sensitivities at each rate.
    """

    map_selection: Interval | None
    ap_selection: dict[int, Interval | None]
    sensitivity: dict[int, tuple[Interval | None, ...]]
    pooled_sensitivity: tuple[Interval | None, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``evaluate_detections`` found.

    ``n_lesions`` and ``n_patients_with`` count labelled lesions, and patients who have any, per category id.
    ``selection_hits`` are matched at the selection IoU (precision-recall curves), ``counts`` and ``froc`` at the FROC
    IoU. ``intervals`` is None when the configuration asks for no resamples. ``oriented_average_precision`` compares
    rotated boxes; it is None unless detections and all lesions have oriented boxes. The selection AP, its hits and its
    intervals are of the boxes that the configuration's ``selection`` names, all else is of axis-aligned ones. The
    configuration's ``max_detections`` is the number that counted; ``limits`` are messages about what it left out.
    """

    categories: dict[int, str]
    configuration: EvaluationConfiguration
    n_images: int
    n_patients: int
    n_lesions: dict[int, int]
    n_patients_with: dict[int, int]
    average_precision: CocoAveragePrecision
    oriented_average_precision: OrientedAveragePrecision | None
    selection_hits: dict[int, ScoredHits]
    froc: Froc
    counts: dict[int, OperatingCounts]
    confusion: Confusion
    intervals: Intervals | None
    limits: tuple[str, ...] = ()

    @property
    def map_30(self) -> float | None:
        """Mean AP at IoU 0.3; None when no class has lesions, as with all means."""
        return self.average_precision.iou_30.mean

    @property
    def map_50(self) -> float | None:
        """Mean AP at IoU 0.5."""
        return self.average_precision.iou_50.mean

    @property
    def map_50_95(self) -> float | None:
        """Mean AP over IoU 0.5, 0.55 .. 0.95."""
        return self.average_precision.iou_50_95.mean

    @property
    def map_selection(self) -> float | None:
        """Mean AP of the selected kind of boxes at the selection IoU; it chooses the best checkpoint."""
        return self.average_precision.selection.mean


def evaluate_detections(
    images: Sequence[LabelledImage],
    detections: Sequence[Detections],
    categories: Mapping[int, str],
    configuration: EvaluationConfiguration,
) -> Evaluation:
    """Evaluate detections per image, after merging, against the image's labelled lesions.

    Args:
        images: labelled images; ``truth`` in px of the global image, ``patient`` names the sampling unit.
        detections: one per image, in the same order, boxes in the same frame.
        categories: category ids and names; labels outside are refused.
        configuration: IoUs, scores, rates and resamples.

    The order of the images, and of lesions and detections within an image, does not change the result: detections of
    equal score take their turn by label and box, for matching and for the limit on detections. Where scores tie, AP
    and FROC differ, as their sources do: COCO's AP ranks tied detections one after the other (within an image in that
    order, images in that of their ids), so that AP depends on the order among ties; in FROC, in the counts and in the
    confusion matrix detections of one score come and go together.

    Raises:
        ValueError: no images, not one Detections per image, an image id twice, unknown labels, numbers that are not
            finite, or a selection by oriented boxes where a detection or a lesion has none.
    """
    _check(images, detections, categories)
    limit = detections_that_count(configuration.max_detections, images)
    configuration = configuration.model_copy(update={"max_detections": limit})
    order = sorted(range(len(images)), key=lambda index: images[index].image_id)
    truths = [in_fixed_order(images[index].truth) for index in order]
    found = [best_first(detections[index]) for index in order]
    patients = [images[index].patient for index in order]
    ids = sorted(categories)

    ious = (configuration.froc_iou, configuration.selection_iou)
    froc_hits, selection_hits = match_images_at(truths, found, ids, iou_thresholds=ious, max_detections=limit)
    froc = free_response(froc_hits, configuration.froc_fp_per_image)
    average_precision = coco_average_precision(
        truths, found, categories, selection_iou=configuration.selection_iou, max_detections=limit
    )
    oriented = _oriented(truths, found, ids, configuration, limit)
    if configuration.selection == "oriented" and oriented is not None:
        selection_hits = oriented.selection_hits
        average_precision = replace(average_precision, selection=oriented.selection)
    intervals = _intervals(
        configuration,
        selection_hits=selection_hits,
        froc_hits=froc_hits,
        selection=average_precision.selection,
        froc_rates=froc.rates,
        patients=patients,
    )
    return Evaluation(
        categories={category: categories[category] for category in ids},
        configuration=configuration,
        n_images=len(images),
        n_patients=len(set(patients)),
        n_lesions={category: froc_hits[category].n_lesions for category in ids},
        n_patients_with={category: _patients_with(froc_hits[category], patients) for category in ids},
        average_precision=average_precision,
        oriented_average_precision=oriented,
        selection_hits=selection_hits,
        froc=froc,
        counts=operating_counts(froc_hits, configuration.operating_score),
        confusion=confusion_matrix(
            truths, found, ids, score=configuration.operating_score, iou_threshold=configuration.froc_iou
        ),
        intervals=intervals,
        limits=tuple(cut_by_max_detections(limit, images, detections)),
    )


def _oriented(
    truths: Sequence[GroundTruth],
    found: Sequence[Detections],
    category_ids: Sequence[int],
    configuration: EvaluationConfiguration,
    max_detections: int,
) -> OrientedAveragePrecision | None:
    possible = any(detections.corners is not None for detections in found) and has_oriented_labels(truths)
    # A selection that cannot be made is an error that names what is missing.
    if not possible and configuration.selection != "oriented":
        return None
    return oriented_average_precision(
        truths,
        found,
        category_ids,
        selection_iou=configuration.selection_iou,
        max_detections=max_detections,
    )


def _intervals(
    configuration: EvaluationConfiguration,
    *,
    selection_hits: Mapping[int, ScoredHits],
    froc_hits: Mapping[int, ScoredHits],
    selection: AveragePrecision,
    froc_rates: Sequence[float],
    patients: Sequence[str],
) -> Intervals | None:
    if configuration.bootstrap_samples == 0:
        return None
    resamples = patient_resamples(
        patients, n_samples=configuration.bootstrap_samples, seed=configuration.bootstrap_seed
    )
    pooled = pool(froc_hits.values())

    def known(hits: ScoredHits) -> bool:
        # Resamples of one patient's lesions are all the same: an interval of width 0 would claim certainty.
        return _patients_with(hits, patients) > 1

    def of_precision(hits: ScoredHits, values: NDArray[np.float64], estimate: float | None) -> Interval | None:
        return bias_corrected_interval(values, estimate) if known(hits) else None

    def of_sensitivities(hits: ScoredHits) -> tuple[Interval | None, ...]:
        if not known(hits):
            return (None,) * len(froc_rates)
        values = resampled_sensitivities(hits, froc_rates, resamples)
        return tuple(percentile_interval(values[:, rate]) for rate in range(len(froc_rates)))

    precisions = {category: resampled_average_precision(hits, resamples) for category, hits in selection_hits.items()}
    return Intervals(
        map_selection=of_precision(pooled, _mean_over_known(np.stack(list(precisions.values()))), selection.mean),
        ap_selection={
            category: of_precision(selection_hits[category], values, selection.per_class[category])
            for category, values in precisions.items()
        },
        sensitivity={category: of_sensitivities(hits) for category, hits in froc_hits.items()},
        pooled_sensitivity=of_sensitivities(pooled),
    )


def _mean_over_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the rows that are not NaN, column by column; NaN where all are."""
    known = np.isfinite(values)
    n_known = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(n_known > 0, total / np.maximum(n_known, 1), np.nan)


def _patients_with(hits: ScoredHits, patients: Sequence[str]) -> int:
    return len({patients[image] for image in np.flatnonzero(hits.lesions).tolist()})


def _check(images: Sequence[LabelledImage], detections: Sequence[Detections], categories: Mapping[int, str]) -> None:
    if not images:
        raise ValueError("expected at least one labelled image to evaluate on, found none; check fold and split")
    if len(images) != len(detections):
        raise ValueError(f"expected one Detections for each of {len(images)} images, found {len(detections)}")
    if not categories:
        raise ValueError("expected at least one category, found none")
    seen: set[str] = set()
    for image, found in zip(images, detections, strict=True):
        if image.image_id in seen:
            raise ValueError(f"{image.image_id}: is twice among the images to evaluate; its lesions would count twice")
        seen.add(image.image_id)
        sources: tuple[tuple[str, Detections | GroundTruth], ...] = (("lesions", image.truth), ("detections", found))
        for name, rows in sources:
            unknown = sorted(set(rows.labels.tolist()) - set(categories))
            if unknown:
                raise ValueError(
                    f"{image.image_id}: {name} with labels {unknown}, expected category ids {sorted(categories)}"
                )
            if not (np.isfinite(rows.boxes).all() and np.isfinite(rows.scores).all()):
                raise ValueError(f"{image.image_id}: {name} with a box or score that is not finite; drop these rows")
