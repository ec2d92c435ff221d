"""A lane without images, served to the tests of `submit`: batches, labels of folds and splits, and one that fails."""

import time

import dagster as dg

BATCHES = dg.DynamicPartitionsDefinition(name="eye_batches")
FOLDS = dg.MultiPartitionsDefinition(
    {"fold": dg.StaticPartitionsDefinition(["fold0", "fold1"]), "split": dg.StaticPartitionsDefinition(["train"])}
)
_SINGLE = dg.BackfillPolicy.single_run()


@dg.asset(key=["eye", "manifest"], partitions_def=BATCHES, backfill_policy=_SINGLE)
def manifest(context: dg.AssetExecutionContext) -> None:
    context.log.info(f"manifest of {context.partition_keys}")


@dg.asset(key=["eye", "tiles"], partitions_def=BATCHES, backfill_policy=_SINGLE, deps=[manifest])
def tiles(context: dg.AssetExecutionContext) -> None:
    time.sleep(0.2)


@dg.asset(key=["eye", "labels"], partitions_def=FOLDS, backfill_policy=_SINGLE, deps=[tiles])
def labels(context: dg.AssetExecutionContext) -> None:
    context.log.info(f"labels of {context.partition_keys}")


@dg.asset(key=["torn", "manifest"], partitions_def=BATCHES, backfill_policy=_SINGLE)
def torn_manifest(context: dg.AssetExecutionContext) -> None:
    if "b00002" in context.partition_keys:
        raise ValueError("b00002: 0042.jpg: expected an image, found half of one")


@dg.asset(key=["torn", "report"], deps=[torn_manifest])
def torn_report() -> None:
    """Comes after the manifest and has no partitions."""


defs = dg.Definitions(
    assets=[manifest, tiles, labels, torn_manifest, torn_report],
    jobs=[dg.define_asset_job("eye_lane", dg.AssetSelection.assets(manifest, tiles), tags={"uveitis/lane": "eye"})],
    executor=dg.in_process_executor,
)
