"""The component EncoderPretraining: a defs.yaml becomes an encoder that learned from images without labels."""

import time
from dataclasses import dataclass
from typing import Self

import dagster as dg
from pydantic import BaseModel, Field

from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.components.fundus_dataset import FundusDataset
from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.orchestration.lane_names import NamedLane, check_names_unique, field_places
from uveitis_assets.orchestration.pools import GPU_POOL
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import Device

ENCODER_CODE_VERSION = "1"


class PretrainingRunConfig(dg.Config):
    """Launchpad options of a pretraining."""

    device: Device = Field("auto", description="auto: the GPU when there is one, else the CPU")


@dataclass
class EncoderPretraining(dg.Component):
    """A ViT encoder continued on the global images of some lanes, for detectors to start from."""

    encoder: EncoderPretrainingConfiguration
    place: str = ""

    @property
    def named(self) -> NamedLane:
        """The encoder's name among those of all kinds of lanes, and where its defs.yaml says it."""
        return NamedLane("encoder", self.encoder.name, self.place)

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Schema of the attributes."""
        return EncoderPretrainingConfiguration

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Take the validated attributes."""
        if not isinstance(attributes, EncoderPretrainingConfiguration):
            raise TypeError(f"{context.path}: expected the attributes of an EncoderPretraining, found {attributes!r}")
        return cls(attributes, field_places(context, "name").get("name", ""))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The encoder's asset.

        Raises:
            LaneConflictError: fundus lanes or encoders share a name; the message names both files.
            ValueError: a lane that it names does not exist; the message names the file.
        """
        fundus = context.component_tree.get_all_components(FundusDataset)
        encoders = context.component_tree.get_all_components(EncoderPretraining)
        check_names_unique([*(found.named for found in fundus), *(found.named for found in encoders)])
        lanes = {found.lane.name: found.lane for found in fundus}
        unknown = sorted(set(self.encoder.learn_from) - set(lanes))
        if unknown:
            raise ValueError(
                f"{context.path / 'defs.yaml'}: learn_from: found no lane {', '.join(unknown)}, expected some of "
                f"{', '.join(sorted(lanes))}"
            )
        return dg.Definitions(assets=[_encoder(self.encoder, [LaneKeys.of(lanes[n]) for n in self.encoder.learn_from])])


def encoder_key(name: str) -> dg.AssetKey:
    """Key of the asset that an EncoderPretraining of this name makes."""
    return dg.AssetKey([name, "encoder"])


def _encoder(configuration: EncoderPretrainingConfiguration, lanes: list[LaneKeys]) -> dg.AssetsDefinition:
    @dg.asset(
        key=encoder_key(configuration.name),
        deps=[dg.AssetDep(keys.stage("tiles"), partition_mapping=dg.AllPartitionMapping()) for keys in lanes],
        group_name=configuration.name,
        owners=list(configuration.owners),
        kinds={"pytorch"},
        code_version=ENCODER_CODE_VERSION,
        pool=GPU_POOL,
        tags={"uveitis/gpu": "preferred"},
        metadata={"configuration": dg.MetadataValue.json(configuration.model_dump(mode="json"))},
        description=f"{configuration.description}\n\nMasked autoencoder on the global images outside test; "
        f"`pretrain_runs/{configuration.name}/encoder.safetensors` can start a detector's backbone. A killed run is "
        "continued where it stopped.".strip(),
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
