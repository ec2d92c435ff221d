"""The asset of an encoder: loads its inputs, calls the pretraining and records the result.

The body imports the pretraining when it runs, so that loading the definitions stays light.
"""

import time

import dagster as dg
from pydantic import Field

from uveitis_assets.components.encoder.keys import EncoderKeys
from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.orchestration.asset_factory import AssetFactory
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import Device

ENCODER_CODE_VERSION = "1"


class PretrainingRunConfig(dg.Config):
    """Launchpad options of a pretraining."""

    device: Device = Field("auto", description="auto: the GPU when there is one, else the CPU")


def encoder_asset(configuration: EncoderPretrainingConfiguration, learned: list[LaneKeys]) -> dg.AssetsDefinition:
    """The encoder, which learns from the global images of the given lanes."""

    @AssetFactory(configuration.name, configuration.owners).asset(
        EncoderKeys(configuration.name).encoder,
        deps=[dg.AssetDep(keys.stage("tiles"), partition_mapping=dg.AllPartitionMapping()) for keys in learned],
        kinds={"pytorch"},
        code_version=ENCODER_CODE_VERSION,
        uses_gpu=True,
        trains=True,
        configuration=configuration.model_dump(mode="json"),
        description=f"{configuration.description}\n\nMasked autoencoder on the global images outside test; "
        f"`pretrain_runs/{configuration.name}/encoder.safetensors` can start a detector's backbone. A killed run is "
        "continued where it stopped.",
    )
    def encoder(context: dg.AssetExecutionContext, config: PretrainingRunConfig) -> dg.MaterializeResult[None]:
        from uveitis_assets.detection.pretraining.pretrain import pretrain_encoder
        from uveitis_assets.training.device import chosen_device

        started = time.perf_counter()
        device = chosen_device(config.device)
        outcome = pretrain_encoder(ArtefactStore.from_environment(), configuration, device=device, log=context.log.info)
        return dg.MaterializeResult(
            metadata={
                "n_images": outcome.n_images,
                "n_held_out": outcome.n_held_out,
                "n_steps": outcome.n_steps,
                "loss": round(outcome.losses[-1], 5),
                "loss_per_epoch": dg.MetadataValue.json([round(loss, 5) for loss in outcome.losses]),
                "started_from": outcome.started_from,
                "device": device,
                "duration_s": round(time.perf_counter() - started, 3),
                "path": dg.MetadataValue.path(str(outcome.encoder)),
            }
        )

    return encoder
