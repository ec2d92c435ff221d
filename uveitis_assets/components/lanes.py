"""The configured lanes, read from defs/ the way Dagster reads them: for command-line verbs that need no assets."""

from pathlib import Path

import dagster as dg

from uveitis_assets.components.defs_files import check_defs_files
from uveitis_assets.components.fundus_dataset import FundusDataset
from uveitis_assets.fundus.configuration import LaneConfiguration
from uveitis_assets.fundus.lane_conflicts import refuse_conflicts


def load_lanes() -> dict[str, LaneConfiguration]:
    """Configuration of every FundusDataset under defs/, by lane name.

    Raises:
        DefsFileError: a file there holds no component.
        LaneConflictError: the lanes cannot be used together.
    """
    package = Path(__file__).parents[1]
    check_defs_files(package / "defs")
    components = dg.ComponentTree.for_project(package).get_all_components(of_type=FundusDataset)
    refuse_conflicts([component.placed for component in components])
    lanes = [component.lane for component in components]
    return {lane.name: lane for lane in sorted(lanes, key=lambda lane: lane.name)}
