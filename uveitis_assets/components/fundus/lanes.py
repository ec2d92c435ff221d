"""Reads the configured lanes from defs/ as Dagster does, for command-line verbs that need no assets."""

from pathlib import Path

import dagster as dg
from pydantic import ValidationError

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.lane_conflicts import check_lanes_compatible
from uveitis_assets.components.fundus_dataset import FundusDataset
from uveitis_assets.orchestration.defs_files import PACKAGE, DefsFileError, check_defs_files
from uveitis_assets.orchestration.lane_component import check_lane_names
from uveitis_assets.orchestration.lane_names import LaneConflictError


class LanesError(ValueError):
    """The lanes' configuration is wrong."""


def load_lanes(package: Path = PACKAGE) -> dict[str, LaneConfiguration]:
    """Configuration of every FundusDataset under a package's defs/, by lane name.

    Raises:
        LanesError: a file there is wrong, or the lanes cannot be used together; the message names file and line.
    """
    try:
        check_defs_files(package / "defs")
        lanes = dg.ComponentTree.for_project(package).get_all_components(of_type=FundusDataset)
        check_lane_names(lanes)
        check_lanes_compatible([lane.placed for lane in lanes])
    except Exception as error:
        # Dagster wraps what is wrong with a defs.yaml in a tree of all components and a long trace.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ValidationError | DefsFileError | LaneConflictError):
                raise LanesError(str(cause)) from error
            cause = cause.__cause__
        raise
    return {lane.lane_name: lane.configuration for lane in sorted(lanes, key=lambda lane: lane.lane_name)}
