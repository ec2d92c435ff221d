"""Configuration of a landing folder: layout, batches, splits, automation."""

from __future__ import annotations

import re
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from uveitis_assets.configuration import Configuration, path_below_data_root
from uveitis_assets.landing.layouts import find_layout, layout_names


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


class PatientConfiguration(Configuration):
    """Where the patients of a lane stand whose layout knows no more of them than the name of each file."""

    csv: str | None = Field(None, description="CSV below the dataset folder with a row per image")
    path_column: str = Field(
        "image", description="Column with the image's path below the dataset folder, its file name or its stem"
    )
    patient_column: str = Field("patient", description="Column with the patient id")
    pattern: str | None = Field(
        None,
        description="Regular expression (Python) of the whole file name without extension, or of the path below the "
        "dataset folder where the pattern holds a `/`; its group `(?P<patient>...)` is the patient id",
    )

    @field_validator("csv")
    @classmethod
    def _csv_stays_below_the_folder(cls, csv: str | None) -> str | None:
        return None if csv is None else path_below_data_root("the dataset folder", "CSV file", csv)

    @field_validator("pattern")
    @classmethod
    def _pattern_finds_a_patient(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        example = r"(?P<patient>\d+)_(left|right)"
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(
                f"expected a regular expression such as '{example}', found {pattern!r}: {error}"
            ) from error
        if "patient" not in groups:
            raise ValueError(f"expected a group (?P<patient>...) as in '{example}', found none in {pattern!r}")
        return pattern

    @model_validator(mode="after")
    def _one_of_csv_and_pattern(self) -> Self:
        if (self.csv is None) == (self.pattern is None):
            found = "neither" if self.csv is None else "both"
            raise ValueError(f"patients: expected either `csv` or `pattern`, found {found}")
        columns = self.model_fields_set & {"path_column", "patient_column"}
        if self.csv is None and columns:
            raise ValueError(
                f"patients: {' and '.join(sorted(columns))} name columns of a CSV file: expected `csv`, found `pattern`"
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
    patients: PatientConfiguration | None = None

    @property
    def patient_rule(self) -> str:
        """16 hex digits of what tells patients besides file names; empty where nothing does."""
        if self.patients is not None:
            return self.patients.fingerprint()
        options = self.image_folder
        if options.csv is None or options.patient_column is None:
            return ""
        return PatientConfiguration(
            csv=options.csv, path_column=options.path_column, patient_column=options.patient_column
        ).fingerprint()

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables below the dataset folder that the configuration names."""
        named = (self.image_folder.csv, None if self.patients is None else self.patients.csv)
        return tuple(dict.fromkeys(table for table in named if table is not None))

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

    @model_validator(mode="after")
    def _one_source_of_patients(self) -> Self:
        if self.patients is None:
            return self
        if not find_layout(self.layout).patients_from_names:
            allowed = [name for name in layout_names() if find_layout(name).patients_from_names]
            raise ValueError(
                f"patients: layout {self.layout} reads the patients itself; expected a layout among "
                f"{', '.join(allowed)}, or no `patients`"
            )
        if self.image_folder.patient_column is not None:
            raise ValueError(
                "patients: expected one place where patients stand, found image_folder.patient_column too; remove one "
                "of them"
            )
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
