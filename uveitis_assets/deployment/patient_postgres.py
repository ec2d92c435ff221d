"""Former name of ``retrying_postgres``, which a dagster.yaml may still name."""

from uveitis_assets.deployment.retrying_postgres import RetryingPostgresStorage as PatientPostgresStorage

__all__ = ["PatientPostgresStorage"]
