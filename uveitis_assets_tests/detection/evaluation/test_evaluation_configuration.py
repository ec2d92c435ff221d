"""What an evaluation cannot be asked for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from uveitis_assets.detection.configuration import EvaluationConfiguration


@pytest.mark.parametrize(
    "values",
    [
        {"selection_iou": 0.0},  # every detection would hit every lesion
        {"froc_iou": 0.0},
        {"froc_iou": 1.2},
        {"froc_fp_per_image": ()},
        {"froc_fp_per_image": (0.0, 1.0)},
        {"max_detections": 0},
    ],
)
def test_values_that_make_no_metric_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        EvaluationConfiguration(**values)  # type: ignore[arg-type]
