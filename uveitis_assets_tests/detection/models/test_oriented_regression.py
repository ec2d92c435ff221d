"""The code of the oriented regression: one to one, without jumps, and blind to how a rectangle is written."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uveitis_assets.detection.models.oriented_regression import N_TERMS, decode_rectangles, encode_rectangles
from uveitis_assets.detection.models.rotated_boxes import corners_from_rectangles, rotated_iou, surrounding_boxes

PROPOSAL = torch.tensor([[-30.0, -20.0, 50.0, 40.0]])


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def overlap(first: Tensor, second: Tensor) -> list[float]:
    found: list[float] = (
        rotated_iou(corners_from_rectangles(first), corners_from_rectangles(second)).diagonal().tolist()
    )
    return found


def terms_of(rectangle: Tensor, proposal: Tensor = PROPOSAL) -> Tensor:
    """The terms as they count: the loss sees a difference times its importance."""
    terms, importance = encode_rectangles(rectangle, proposal)
    return terms * importance


rectangle = st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(2, 90), st.floats(2, 90), st.floats(-7, 7)).map(
    rows
)
proposal = st.tuples(st.floats(-90, 90), st.floats(-90, 90), st.floats(3, 90), st.floats(3, 90)).map(
    lambda row: rows((row[0], row[1], row[0] + row[2], row[1] + row[3]))
)


@settings(max_examples=100)
@given(rectangle, proposal)
def test_every_rectangle_can_be_encoded_relative_to_every_proposal(wanted: Tensor, box: Tensor) -> None:
    terms, importance = encode_rectangles(wanted, box)
    assert terms.shape == importance.shape == (1, N_TERMS)
    assert overlap(decode_rectangles(terms, box), wanted) == pytest.approx([1], abs=1e-6)


def test_squares_keep_their_angle() -> None:
    wanted = torch.stack([rows((3, 4, 20, 20, angle))[0] for angle in np.linspace(-2, 2, 33)])
    terms, _ = encode_rectangles(wanted, PROPOSAL.expand(33, 4))
    assert overlap(decode_rectangles(terms, PROPOSAL.expand(33, 4)), wanted) == pytest.approx([1] * 33, abs=1e-6)


@settings(max_examples=50)
@given(rectangle)
def test_a_rectangle_written_with_its_sides_exchanged_or_half_a_turn_on_has_the_same_terms(wanted: Tensor) -> None:
    cx, cy, w, h, angle = wanted[0].tolist()
    for other in ((cx, cy, h, w, angle + math.pi / 2), (cx, cy, w, h, angle - math.pi)):
        torch.testing.assert_close(terms_of(rows(other)), terms_of(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sides", [(40.0, 39.999), (40.0, 40.0), (40.0, 30.0), (40.0, 10.0), (40.0, 2.0)])
def test_turning_a_rectangle_by_little_changes_its_terms_by_little(sides: tuple[float, float]) -> None:
    steps = 3600
    turn = torch.linspace(0, math.pi, steps + 1, dtype=torch.float64)
    turned = torch.stack([rows((5, 5, *sides, float(angle)))[0] for angle in turn])
    terms = terms_of(turned, PROPOSAL.expand(steps + 1, 4))
    largest_step = terms.diff(dim=0).abs().amax()
    # A smooth path of this spread takes steps of about spread / (steps / 4); a jump would be the spread itself.
    assert largest_step < 0.02 * (terms.amax(0) - terms.amin(0)).amax()
    torch.testing.assert_close(terms[0], terms[-1], rtol=0, atol=1e-9)


def test_becoming_square_and_longer_on_the_other_side_changes_the_terms_by_little() -> None:
    widths = torch.linspace(30, 50, 2001, dtype=torch.float64)
    changing = torch.stack([rows((5, 5, float(width), 40.0, 0.6))[0] for width in widths])
    terms = terms_of(changing, PROPOSAL.expand(len(widths), 4))
    assert terms.diff(dim=0).abs().amax() < 0.01


def test_an_untrained_answer_is_the_proposal_itself() -> None:
    boxes = rows((0, 0, 40, 20), (10, 5, 20, 95), (1, 1, 9, 9))
    found = decode_rectangles(torch.zeros(3, N_TERMS), boxes)
    torch.testing.assert_close(surrounding_boxes(corners_from_rectangles(found)), boxes, rtol=0, atol=1e-9)


def test_wild_answers_of_an_untrained_network_stay_finite() -> None:
    wild = torch.tensor([[1e4] * N_TERMS, [-1e4] * N_TERMS, [0, 0, 1e4, -1e4, 1e4, 0, 0]])
    found = decode_rectangles(wild, rows((0, 0, 10, 10), (5, 5, 5, 5), (0, 0, 700, 1)))
    assert torch.isfinite(found).all()
    assert (found[:, 2] >= found[:, 3]).all()
    assert (found[:, 3] >= 0).all()


def test_a_rectangle_without_thickness_has_finite_terms() -> None:
    terms, importance = encode_rectangles(rows((10, 10, 30, 0, 0.7), (10, 10, 0, 0, 0)), PROPOSAL.expand(2, 4))
    assert torch.isfinite(importance).all()
    assert torch.isfinite(terms).all()
    assert terms.abs().max() < 100
