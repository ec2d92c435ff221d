"""Weights of the ultra-widefield outline's cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UwfRetinaParameters:
    """Weights of the outline's cost.

    Likelihood ratios are in nats, radii in half-frames (1 = the middle of a side).

    Set by hand and a coarse search on eight outlined photographs and altered copies of them; the two that concern
    texture and soft edges also on generated images. Moving one by 30 % changes the mean IoU (0.966) by at most 0.006,
    frame_exit_reward by 0.013; choosing those two without the photograph they are measured on gives 0.966 too
    (benchmarks/roi_accuracy.py --sensitivity prints the table). A texture_weight near 1 takes the arcades of some
    regular fundus photographs for the border.
    """

    frame_exit_reward: float = 3.0  # evidence of an outline that the frame cuts, in nats
    largest_evidence: float = 3.5  # largest evidence of one change point, in nats
    corner_discount: float = 0.5  # share of that reward lost at the frame's corners
    crossing_cost: float = 20.0  # per nat of crossed change point and per half-frame
    darkening_weight: float = 0.45  # crossing cost of edges that darken outwards: lash shadows and vignetting do
    reddening_weight: float = 0.8  # change points towards red: anterior tissue is greener than the fundus beside it
    skin_cost: float = 10.0  # per area (half-frame squared) brighter than skin_brightness
    skin_brightness: float = 1.2  # times the 95th percentile of the central fundus
    appearance_weight: float = 8.0  # second pass: per nat and area (half-frame squared)
    bend_cost: float = 0.25  # per squared radial step between neighbouring directions
    brightness_floor: float = 0.06  # standard deviation below which log brightness is called constant
    red_green_floor: float = 0.02  # the same for the log red/green ratio
    soft_edge_floor: float = 7.0  # times these floors in the wide windows: there the fundus' own shading must not count
    texture_weight: float = 0.65  # of a loss of texture, against changes of brightness and colour
