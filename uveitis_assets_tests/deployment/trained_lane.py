"""A training that prefers a GPU, and an asset that needs none."""

import dagster as dg


@dg.asset(tags={"uveitis/gpu": "preferred"})
def checkpoint() -> None:
    """Is launched, and executed nowhere."""


@dg.asset
def report() -> None:
    """Is launched, and executed nowhere."""


defs = dg.Definitions(
    assets=[checkpoint, report],
    jobs=[
        dg.define_asset_job("training", dg.AssetSelection.assets(checkpoint)),
        dg.define_asset_job("reporting", dg.AssetSelection.assets(report)),
    ],
)
