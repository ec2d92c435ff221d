"""Component EncoderPretraining: turns a defs.yaml into an encoder pretrained without labels."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from uveitis_assets.components.encoder.assets import encoder_asset
from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.orchestration.lane_component import LaneComponent


class EncoderPretraining(LaneComponent[EncoderPretrainingConfiguration]):
    """A ViT encoder continued on the global images of some lanes, for detectors to start from."""

    kind = "encoder"
    model = EncoderPretrainingConfiguration

    @property
    def lane_name(self) -> str:
        return self.configuration.name

    def lane_definitions(self, context: dg.ComponentLoadContext, lanes: Sequence[LaneComponent[Any]]) -> dg.Definitions:
        """The encoder's asset.

        Raises:
            ValueError: a lane that it names does not exist; the message names the file.
        """
        known = LaneKeys.of_project(lanes)
        unknown = sorted(set(self.configuration.learn_from) - set(known))
        if unknown:
            raise ValueError(
                f"{context.path / 'defs.yaml'}: learn_from: found no lane {', '.join(unknown)}, expected some of "
                f"{', '.join(sorted(known))}"
            )
        return dg.Definitions(
            assets=[encoder_asset(self.configuration, [known[name] for name in self.configuration.learn_from])]
        )
