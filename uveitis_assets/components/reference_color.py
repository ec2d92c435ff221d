"""Component ReferenceColor: colour statistics of regular fundus images for Reinhard normalization."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from uveitis_assets.components.fundus.keys import REFERENCE_COLOR, manifest_key
from uveitis_assets.fundus.configuration import ReferenceColorConfiguration
from uveitis_assets.orchestration.asset_factory import AssetFactory
from uveitis_assets.orchestration.lane_component import LaneComponent
from uveitis_assets.orchestration.workers import worker_count
from uveitis_assets.storage.files import write_json
from uveitis_assets.storage.store import ArtefactStore

REFERENCE_COLOR_CODE_VERSION = "1"


class ReferenceColor(LaneComponent[ReferenceColorConfiguration]):
    """The unpartitioned asset ``reference_color``, which all lanes share."""

    kind = "reference"
    model = ReferenceColorConfiguration
    placed_fields = ()

    @property
    def lane_name(self) -> None:
        return None

    def lane_definitions(self, context: dg.ComponentLoadContext, lanes: Sequence[LaneComponent[Any]]) -> dg.Definitions:
        """The asset."""
        return dg.Definitions(assets=[_reference_color(self.configuration)])


def _reference_color(configuration: ReferenceColorConfiguration) -> dg.AssetsDefinition:
    @AssetFactory("reference", configuration.owners).asset(
        REFERENCE_COLOR,
        deps=[
            dg.AssetDep(manifest_key(lane), partition_mapping=dg.AllPartitionMapping()) for lane in configuration.lanes
        ],
        kinds={"numpy", "json"},
        code_version=REFERENCE_COLOR_CODE_VERSION,
        configuration=configuration.model_dump(mode="json"),
        description="Mean and standard deviation of RGB and LAB inside the retina of regular fundus photographs.",
    )
    def reference_color(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from uveitis_assets.fundus.reference_color import build_reference_color
        from uveitis_assets.landing.manifest_images import manifest_images

        store = ArtefactStore.from_environment()
        report = build_reference_color(
            store,
            manifest_images(store, configuration.lanes, configuration.datasets),
            workers=worker_count(0),
            per_dataset=configuration.per_dataset,
            max_images=configuration.max_images,
            downsample_max_side=configuration.downsample_max_side,
            pixels_per_image=configuration.pixels_per_image,
            stats_erode_px=configuration.stats_erode_px,
        )
        write_json(store.reference_color_file(), report.content)
        for image_id, reason in report.skipped:
            context.log.warning(f"reference_color: {image_id} was skipped: {reason}")
        return dg.MaterializeResult(
            metadata={
                "n_images_used": report.content["n_images_used"],
                "n_pixels": report.content["n_pixels"],
                "n_skipped": len(report.skipped),
                "statistics": dg.MetadataValue.json(report.content),
                "path": dg.MetadataValue.path(str(store.reference_color_file())),
            }
        )

    return reference_color
