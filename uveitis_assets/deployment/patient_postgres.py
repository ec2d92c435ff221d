"""Former name of ``retrying_postgres``, for a dagster.yaml that names it."""

from uveitis_assets.deployment.retrying_postgres import RetryingPostgresStorage as PatientPostgresStorage

__all__ = ["PatientPostgresStorage"]
