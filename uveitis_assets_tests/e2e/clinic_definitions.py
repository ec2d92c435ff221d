"""The platform's definitions with one more lane, whose file names and table name patients: no shipped lane has such."""

import dagster as dg

# By its module: Dagster wants one function with @definitions in a module's names.
from uveitis_assets import definitions as platform
from uveitis_assets.components.fundus.assets import lane_assets
from uveitis_assets.components.fundus.automation import lane_jobs
from uveitis_assets.components.fundus.checks import lane_checks
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.landing.configuration import ImageFolderConfiguration

CLINIC_PATIENTS = {"Doe_Jane": "MRN-47110815", "Roe_Richard": "MRN-47110816", "Poe_Edgar": "MRN-47110817"}
"""Raw patient id by the name in the image's file name."""

CLINIC = LaneConfiguration(
    name="clinic",
    layout="image_folder",
    folder="clinic",
    image_folder=ImageFolderConfiguration(
        csv="patients.csv", patient_column="patient", eye_column="eye", identify_by_content=True
    ),
)


@dg.definitions
def defs() -> dg.Definitions:
    """The shipped lanes and the clinic's."""
    clinic = dg.Definitions(assets=lane_assets(CLINIC), asset_checks=lane_checks(CLINIC), jobs=lane_jobs(CLINIC))
    return dg.Definitions.merge(platform.defs(), clinic)
