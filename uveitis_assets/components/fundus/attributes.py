"""Attributes of a FundusDataset's defs.yaml: lane configuration, and the checks that need Dagster.

They are made here and not with the schedule, so that a mistake is named with file, line and field like any other.
"""

from typing import Annotated

import dagster as dg
from pydantic import AfterValidator

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.landing.configuration import AutomationConfiguration


def _cron_syntax(text: str) -> str:
    try:
        dg.ScheduleDefinition(name="syntax", job_name="syntax", cron_schedule=text)
    except dg.DagsterInvalidDefinitionError as error:
        raise ValueError(
            f"expected cron syntax (minute, hour, day of month, month, day of week), such as `0 2 * * *` for every "
            f"night at two, found {text!r}"
        ) from error
    return text


class AutomationAttributes(AutomationConfiguration):
    """What runs by itself, with a schedule that Dagster can keep."""

    fill_cron: Annotated[str, AfterValidator(_cron_syntax)] = AutomationConfiguration.model_fields["fill_cron"].default


class LaneAttributes(LaneConfiguration):
    """The attributes of a FundusDataset."""

    automation: AutomationAttributes = AutomationAttributes()
