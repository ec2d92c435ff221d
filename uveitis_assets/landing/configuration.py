"""Configuration of a landing folder: layout, batches, splits, automation."""

from __future__ import annotations

import re
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from uveitis_assets.configuration import Configuration, path_below_data_root
from uveitis_assets.landing.layouts import find_layout


class SplitConfiguration(Configuration):
    """Patient-level splits by a hash of seed and patient: an image keeps its split when others land."""

    name: str = Field(
        "stage0",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        description="Lanes with the same name share the files `splits/<name>_<fold>.json`",
    )
    seed: int = Field(42, description="Seed of the hash that assigns patients to splits")
    test_ratio: float = Field(0.15, ge=0.0, lt=1.0, description="Share of the patients in test, in every fold")
    folds: int = Field(5, ge=2, le=20, description="Folds over the patients outside test")
    use_official: bool = Field(True, description="Respect the dataset's own train/val/test in every fold")
    pinned: str | None = Field(
        None,
        description="Existing splits file to keep, relative to $UVEITIS_DATA; `{fold}` in it is replaced, without it "
        "the file holds for every fold",
    )

    @field_validator("pinned")
    @classmethod
    def _pinned_stays_below_data(cls, pinned: str | None) -> str | None:
        if pinned is None:
            return None
        wrong = re.search(r"\{[^{}]*\}?|\}", pinned.replace("{fold}", ""))
        if wrong:
            raise ValueError(f"expected no placeholder but {{fold}}, found {wrong.group()} in {pinned!r}")
        return path_below_data_root("$UVEITIS_DATA", "file", pinned)


class ImageFolderConfiguration(Configuration):
    """Options of the generic ``image_folder`` layout."""

    csv: str | None = Field(None, description="CSV below the dataset folder")
    path_column: str = Field(
        "image", description="Column with the image's path below the dataset folder, its file name or its stem"
    )
    patient_column: str | None = Field(
        None, description="Column with the patient id; without it every image is its own patient"
    )
    eye_column: str | None = Field(None, description="Column with the eye: `left`, `right`, `OS`, `OD`, `L`, `R`")
    grade_column: str | None = Field(None, description="Column with a grade, a whole number from 0 to 99")
    identify_by_content: bool = Field(
        False, description="File names name patients: image ids come from the content hash instead of the file name"
    )

    @field_validator("csv")
    @classmethod
    def _csv_stays_below_the_folder(cls, csv: str | None) -> str | None:
        return None if csv is None else path_below_data_root("the dataset folder", "CSV file", csv)

    @model_validator(mode="after")
    def _columns_need_a_csv(self) -> Self:
        columns = {
            name: value
            for name, value in self.model_dump().items()
            if name.endswith("_column") and value != type(self).model_fields[name].default
        }
        if self.csv is None and columns:
            raise ValueError(
                f"{' and '.join(columns)} name columns of a CSV file: expected `csv`, found none; without it every "
                "image would be a patient of its own"
            )
        return self


class DatasetConfiguration(Configuration):
    """One landing folder and how it is read."""

    name: str = Field(
        pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=64, description="Lane name: key prefix and file names"
    )
    layout: str = Field(description="How the folder is read")
    folder: str = Field(description="Folder below $UVEITIS_RAW")
    batch_size: int = Field(256, ge=1, le=4096, description="Images per partition at most")
    image_folder: ImageFolderConfiguration = ImageFolderConfiguration()

    @property
    def dataset_tags(self) -> tuple[str, ...]:
        """What the lane's image ids begin with: its name, or one tag per kind of photograph."""
        return find_layout(self.layout).dataset_tags(self.name)

    @field_validator("layout")
    @classmethod
    def _layout_is_registered(cls, layout: str) -> str:
        return find_layout(layout).name

    @field_validator("folder")
    @classmethod
    def _folder_stays_below_raw(cls, folder: str) -> str:
        return path_below_data_root("$UVEITIS_RAW", "folder", folder)

    @model_validator(mode="after")
    def _image_folder_options_need_their_layout(self) -> Self:
        if self.layout != "image_folder" and self.image_folder != ImageFolderConfiguration():
            raise ValueError(f"image_folder options need `layout: image_folder`, found layout {self.layout}")
        return self


class AutomationConfiguration(Configuration):
    """What runs by itself while a daemon is up."""

    landing_sensor: Literal["running", "stopped"] = Field("running", description="State the landing sensor starts in")
    landing_interval_s: int = Field(30, ge=1, le=86400, description="Seconds between looks at the landing folder")
    labels_sensor: Literal["running", "stopped"] = Field("running", description="State the labels sensor starts in")
    labels_interval_s: int = Field(30, ge=1, le=86400, description="Seconds between comparisons of tiles and labels")
    fill_schedule: Literal["running", "stopped"] = Field("running", description="State the nightly schedule starts in")
    fill_cron: str = Field("0 2 * * *", description="When missing partitions are filled, cron syntax")
    timezone: str = Field("UTC", description="Time zone of fill_cron")
    max_batches_per_run: int = Field(16, ge=1, le=500, description="Longest partition range of one automatic run")

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"expected a time zone such as Europe/Paris, found {timezone!r}") from error
        return timezone
