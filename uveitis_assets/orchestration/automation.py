"""Jobs over asset selections, and the state in which sensors and schedules start."""

from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

if TYPE_CHECKING:
    pass


# Dagster has no public name for what define_asset_job returns.
AssetJob = Any


def sensor_status(state: Literal["running", "stopped"]) -> dg.DefaultSensorStatus:
    """The state that a sensor starts in, as Dagster names it."""
    return dg.DefaultSensorStatus.RUNNING if state == "running" else dg.DefaultSensorStatus.STOPPED


def schedule_status(state: Literal["running", "stopped"]) -> dg.DefaultScheduleStatus:
    return dg.DefaultScheduleStatus.RUNNING if state == "running" else dg.DefaultScheduleStatus.STOPPED
