"""States in which sensors and schedules start, and the type of asset jobs."""

from typing import Any, Literal

import dagster as dg

# Dagster has no public name for what define_asset_job returns.
AssetJob = Any


def sensor_status(state: Literal["running", "stopped"]) -> dg.DefaultSensorStatus:
    """The state that a sensor starts in, as Dagster names it."""
    return dg.DefaultSensorStatus.RUNNING if state == "running" else dg.DefaultSensorStatus.STOPPED


def schedule_status(state: Literal["running", "stopped"]) -> dg.DefaultScheduleStatus:
    """The state that a schedule starts in, as Dagster names it."""
    return dg.DefaultScheduleStatus.RUNNING if state == "running" else dg.DefaultScheduleStatus.STOPPED
