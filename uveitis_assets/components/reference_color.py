"""The component ReferenceColor: colour statistics of regular fundus images, for Reinhard normalization."""

from dataclasses import dataclass
from typing import Self

import dagster as dg
from pydantic import BaseModel

from uveitis_assets.fundus.configuration import ReferenceColorConfiguration
from uveitis_assets.orchestration.workers import worker_count
from uveitis_assets.storage.files import write_json
from uveitis_assets.storage.store import ArtefactStore


@dataclass
class ReferenceColor(dg.Component):
    """The unpartitioned asset ``reference_color``."""

    configuration: ReferenceColorConfiguration

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Schema of the attributes."""
        return ReferenceColorConfiguration

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Take the validated attributes."""
        if not isinstance(attributes, ReferenceColorConfiguration):
            raise TypeError(f"{context.path}: expected the attributes of a ReferenceColor, found {attributes!r}")
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset."""
        configuration = self.configuration

        @dg.asset(
            key="reference_color",
            deps=[
                dg.AssetDep([lane, "manifest"], partition_mapping=dg.AllPartitionMapping())
                for lane in configuration.lanes
            ],
            group_name="reference",
            owners=list(configuration.owners),
            kinds={"numpy", "json"},
            code_version="1",
            metadata={"configuration": dg.MetadataValue.json(configuration.model_dump(mode="json"))},
            description="Mean and standard deviation of RGB and LAB inside the retina of regular fundus photographs.",
        )
        def reference_color(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            from uveitis_assets.fundus.reference_color import build_reference_color
            from uveitis_assets.landing.manifest_images import manifest_images

            store = ArtefactStore.from_environment()
            images = manifest_images(store, configuration.lanes, configuration.datasets)
            report = build_reference_color(
                store,
                images,
                workers=worker_count(0),
                per_dataset=configuration.per_dataset,
                max_images=configuration.max_images,
                downsample_max_side=configuration.downsample_max_side,
                pixels_per_image=configuration.pixels_per_image,
                stats_erode_px=configuration.stats_erode_px,
            )
            write_json(store.reference_color_file(), report.content)
            for image_id, reason in report.skipped:
                context.log.warning(f"reference_color: {image_id} was passed over: {reason}")
            return dg.MaterializeResult(
                metadata={
                    "n_images_used": report.content["n_images_used"],
                    "n_pixels": report.content["n_pixels"],
                    "n_skipped": len(report.skipped),
                    "statistics": dg.MetadataValue.json(report.content),
                    "path": dg.MetadataValue.path(str(store.reference_color_file())),
                }
            )

        return dg.Definitions(assets=[reference_color])
