"""The configured lanes, read from defs/ the way Dagster reads them: for command-line verbs that need no assets."""

from pathlib import Path

import dagster as dg

from uveitis_assets.components.fundus_dataset import FundusDataset
from uveitis_assets.fundus.configuration import LaneConfiguration


def load_lanes() -> dict[str, LaneConfiguration]:
    """Configuration of every FundusDataset under defs/, by lane name."""
    tree = dg.ComponentTree.for_project(Path(__file__).parent)
    lanes = [component.lane for component in tree.get_all_components(of_type=FundusDataset)]
    return {lane.name: lane for lane in sorted(lanes, key=lambda lane: lane.name)}
