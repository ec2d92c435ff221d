"""The families that the contract of the batch engine is held to: preprocessing, prediction, and groups of files.

Each keeps inputs and artefacts below one root, so that a whole situation is copied with its folder.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import polars as pl
from blake3 import blake3

from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.fundus.image_stages import ImageStages
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.batch_outcome import BatchOutcome
from uveitis_assets.stages.batch_run import run_batch
from uveitis_assets.stages.batch_task import BatchItem, BatchTask, ItemWork, StageRecords
from uveitis_assets.stages.index import Row
from uveitis_assets.stages.journal import read_stage_journal
from uveitis_assets.storage.files import remove_half_files
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.fundus.preprocess_inputs import SMALL, fundus_picture, land, register

BATCH = "b00001"


class StageReport(NamedTuple):
    """Items whose broken files were made again, with what was found, and what was wrong with the index."""

    repaired: dict[str, str]
    index_finding: str | None


def reports(outcome: BatchOutcome[Any]) -> dict[str, StageReport]:
    return {stage: StageReport(one.repaired, one.index_finding) for stage, one in outcome.stages.items()}


class BatchUser(ABC):
    """One family as the contract's tests see it.

    ``usable`` are ids of items that get artefacts; ``output`` names the folders and files of its artefacts below the
    root; ``work`` is what computes an item, and ``kills`` how many of the places where a kill leaves something else
    behind are tried (None: all of them in a fresh batch).
    """

    lane: ClassVar[str] = "lane"
    usable: ClassVar[tuple[str, ...]]
    stages: ClassVar[tuple[str, ...]]
    output: ClassVar[tuple[str, ...]]
    work: ClassVar[type[ItemWork[Any]]]
    has_journal: ClassVar[bool] = True
    kills: ClassVar[int | None] = 8

    @abstractmethod
    def land(self, store: ArtefactStore) -> None:
        """Write the inputs of all items."""

    @abstractmethod
    def take_away(self, store: ArtefactStore, item_id: str) -> None:
        """Let an item leave the batch."""

    @abstractmethod
    def set_aside(self, store: ArtefactStore, item_id: str) -> None:
        """Register an item as one that cannot be used."""

    @abstractmethod
    def run(self, store: ArtefactStore, version: str = "1", workers: int = 2) -> dict[str, StageReport]:
        """Bring the batch up to date; what another version made is made again. Returns a report by stage."""

    @abstractmethod
    def lock_name(self, batch: str) -> str: ...

    def item_of(self, work: Any) -> str:
        """Id of the item that is being computed."""
        image_id: str = work.image.image_id
        return image_id

    def index(self, store: ArtefactStore, stage: str) -> Path:
        return store.stage_index(self.lane, stage, BATCH)

    def finished(self, store: ArtefactStore, expected: Mapping[str, bytes]) -> set[tuple[str, str]]:
        """Items and stages that a killed run recorded as done; ``expected`` are the artefacts of a whole run."""
        return {
            (item_id, stage)
            for stage in self.stages
            for item_id, row in read_stage_journal(store.stage_journal(self.lane, stage, BATCH)).items()
            if row is not None
        }

    def artefacts(self, store: ArtefactStore) -> dict[str, bytes]:
        """Content of all files of the batch by path below the root, unfinished ones and journals too."""
        return {path.relative_to(store.root).as_posix(): path.read_bytes() for path in self.files(store)}

    def files(self, store: ArtefactStore) -> list[Path]:
        folders = (*self.output, f"index/{self.lane}")
        return [path for folder in folders for path in sorted((store.root / folder).rglob("*")) if path.is_file()]

    def artefacts_of(self, store: ArtefactStore, item_id: str) -> list[str]:
        return [name for name in self.artefacts(store) if artefact_key(item_id) in name]


class Preprocessing(BatchUser):
    """Four images; one more is black, which only the run finds out."""

    usable = tuple(f"lane::image{number:02d}" for number in range(4))
    stages = STAGES
    output = ("preproc",)
    work = ImageStages

    def land(self, store: ArtefactStore) -> None:
        for number in range(len(self.usable)):
            land(store, f"image{number:02d}.png", fundus_picture(number, 120, 100))
        land(store, "black.png", np.zeros((100, 100, 3), np.uint8))

    def take_away(self, store: ArtefactStore, item_id: str) -> None:
        self._file(store, item_id).unlink()

    def set_aside(self, store: ArtefactStore, item_id: str) -> None:
        path = self._file(store, item_id)
        path.with_suffix(".refused").write_bytes(b"")

    def _file(self, store: ArtefactStore, item_id: str) -> Path:
        return store.raw / "lane" / f"{item_id.partition('::')[2]}.png"

    def _image(self, path: Path) -> RegisteredImage:
        if path.with_suffix(".refused").exists():
            return replace(register(path), quarantine_reason="alpha_channel", quarantine_detail="found RGBA")
        return register(path)

    def run(self, store: ArtefactStore, version: str = "1", workers: int = 2) -> dict[str, StageReport]:
        def read_images() -> list[RegisteredImage]:
            return [self._image(path) for path in sorted((store.raw / "lane").glob("*.png"))]

        return reports(
            preprocess_batch(store, "lane", BATCH, read_images, SMALL, STAGES, workers=workers, code_version=version)
        )

    def lock_name(self, batch: str) -> str:
        return f"lane.{batch}.preprocess"


class Prediction(BatchUser):
    """Five images, of which one shows nothing; the tiles' index says which are usable."""

    lane = "clinic"
    usable = tuple(f"clinic::eye{number}" for number in range(5))
    stages = ("predictions",)
    output = ("preds", "preds_vis")
    has_journal = False

    @cached_property
    def work(self) -> type[ItemWork[Any]]:  # type: ignore[override]
        from uveitis_assets.detection.inference.prediction_task import ImagePrediction

        return ImagePrediction

    def land(self, store: ArtefactStore) -> None:
        self._write_tiles(store, {})

    def take_away(self, store: ArtefactStore, item_id: str) -> None:
        self._write_tiles(store, {item_id: "gone"})

    def set_aside(self, store: ArtefactStore, item_id: str) -> None:
        self._write_tiles(store, {item_id: "truncated"})

    def _write_tiles(self, store: ArtefactStore, state: Mapping[str, str]) -> None:
        from uveitis_assets_tests.detection.preprocessed_lane import write_preprocessed_batch

        images: dict[str, dict[int, tuple[int, int, int, int]]] = {
            item_id.partition("::")[2]: {1: (number, 5, number + 20, 34)} if number else {}
            for number, item_id in enumerate(self.usable)
            if state.get(item_id) != "gone"
        }
        aside = tuple(stem for item_id in state if (stem := item_id.partition("::")[2]) in images)
        write_preprocessed_batch(store, images, quarantined=aside)

    def run(self, store: ArtefactStore, version: str = "1", workers: int = 2) -> dict[str, StageReport]:
        from uveitis_assets.detection.configuration import InferenceConfiguration
        from uveitis_assets.detection.inference.prediction_batch import predict_batch
        from uveitis_assets_tests.detection.known_detectors import PaintedBoxDetector

        done = predict_batch(
            store,
            "exp",
            self.lane,
            BATCH,
            load_models=lambda: [PaintedBoxDetector()],
            checkpoints=["weights"],
            configuration=InferenceConfiguration(),
            names={1: "foyer_choroidien"},
            device="cpu",
            code_version=version,
        )
        return {"predictions": StageReport(done.repaired, done.index_finding)}

    def lock_name(self, batch: str) -> str:
        return f"exp.clinic.{batch}.predict"

    def index(self, store: ArtefactStore, stage: str) -> Path:
        return store.prediction_index("exp", self.lane, BATCH)

    def finished(self, store: ArtefactStore, expected: Mapping[str, bytes]) -> set[tuple[str, str]]:
        files = {item_id: store.prediction_file("exp", artefact_key(item_id)) for item_id in self.usable}
        return {
            (item_id, "predictions")
            for item_id, path in files.items()
            if path.exists() and path.read_bytes() == expected[path.relative_to(store.root).as_posix()]
        }

    def files(self, store: ArtefactStore) -> list[Path]:
        """Without the tiles' index, which is an input here."""
        return [path for path in super().files(store) if path.parent.name != "tiles"]


# A third family, as small as one can be: groups of files that hold numbers -----------------------------------

GroupStage = Literal["sums", "reports"]
GROUP_SCHEMA = pl.Schema(
    dict.fromkeys(
        ("image_id", "key", "content_hash", "fingerprint", "quarantine_reason", "quarantine_detail"), pl.String
    )
    | {"total": pl.Int64}
)


class GroupWork(ItemWork[GroupStage]):
    """Adds the numbers in a group's files; the report needs the sum."""

    def __init__(self, task: GroupTask, item: BatchItem[list[Path]], rows: Mapping[GroupStage, Row]) -> None:
        self.item = item
        self._task = task
        self._rows = rows
        self._total: int | None = None

    def run(self, stage: GroupStage) -> Row:
        files = self._task.files(self.item.key, stage)
        if stage == "sums":
            texts = [path.read_text() for path in self.item.source]
            if not all(text.isdigit() for text in texts):
                raise QuarantineError("bad_label", "expected numbers")
            self._total = sum(int(text) for text in texts)
            self.write(files[0], f"{self._total}".encode())
            self.write(files[1], "+".join(texts).encode())
        else:
            if self._total is None:
                self._total = self._rows["sums"]["total"]
            self.write(files[0], f"{self.item.item_id}: {self._total}, version {self._task.version}".encode())
        return {"total": self._total}


class GroupTask(BatchTask[list[Path], GroupStage]):
    items_name = "groups"

    def __init__(self, store: ArtefactStore, version: str, schema: pl.Schema = GROUP_SCHEMA) -> None:
        self._store, self.version = store, version
        super().__init__(
            f"groups[{BATCH}]",
            [_group(folder) for folder in sorted((store.raw / "groups").iterdir())],
            {
                stage: StageRecords(
                    schema,
                    store.stage_index("groups", stage, BATCH),
                    store.stage_journal("groups", stage, BATCH),
                )
                for stage in ("sums", "reports")
            },
            ["sums", "reports"],
        )

    def files(self, key: str, stage: GroupStage) -> list[Path]:
        extensions = ("sum", "terms") if stage == "sums" else ("report",)
        return [self._store.root / "groups" / f"{key}.{extension}" for extension in extensions]

    def fingerprint(self, item: BatchItem[list[Path]], stage: GroupStage, rows: Mapping[GroupStage, Row]) -> str:
        return f"{stage} {self.version}"

    def required_files(self, item: BatchItem[list[Path]], stage: GroupStage, row: Row) -> Iterable[Path]:
        return self.files(item.key, stage)

    def start(self, item: BatchItem[list[Path]], rows: Mapping[GroupStage, Row], prepared: None) -> GroupWork:
        return GroupWork(self, item, rows)

    def remove(self, key: str, stage: GroupStage, former: Row | None) -> None:
        for path in self.files(key, stage):
            path.unlink(missing_ok=True)

    def remove_partial_files(self) -> None:
        remove_half_files(self._store.root / "groups")


def _group(folder: Path) -> BatchItem[list[Path]]:
    files = sorted(folder.glob("*.txt"))
    refused = (folder / "refused").exists()
    return BatchItem(
        f"groups::{folder.name}",
        blake3("".join(sorted(blake3(path.read_bytes()).hexdigest() for path in files)).encode()).hexdigest(),
        files,
        quarantine_reason="bad_label" if refused else None,
        quarantine_detail="refused" if refused else None,
    )


class Groups(BatchUser):
    """Three groups of five files each; a fourth holds no numbers, which only the run finds out."""

    lane = "groups"
    usable = ("groups::one", "groups::two", "groups::three")
    stages = ("sums", "reports")
    output = ("groups",)
    work = GroupWork
    kills = None

    def land(self, store: ArtefactStore) -> None:
        for item_id in (*self.usable, "groups::words"):
            for number in range(5):
                path = self._folder(store, item_id) / f"{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("seven" if item_id == "groups::words" else f"{number}{len(item_id)}")

    def take_away(self, store: ArtefactStore, item_id: str) -> None:
        shutil.rmtree(self._folder(store, item_id))

    def set_aside(self, store: ArtefactStore, item_id: str) -> None:
        (self._folder(store, item_id) / "refused").touch()

    def _folder(self, store: ArtefactStore, item_id: str) -> Path:
        return store.raw / "groups" / item_id.partition("::")[2]

    def run(self, store: ArtefactStore, version: str = "1", workers: int = 2) -> dict[str, StageReport]:
        return reports(
            run_batch(
                store, self.lane, BATCH, lambda: GroupTask(store, version), lock_name=self.lock_name, workers=workers
            )
        )

    def lock_name(self, batch: str) -> str:
        return f"groups.{batch}.add"

    def item_of(self, work: Any) -> str:
        item_id: str = work.item.item_id
        return item_id


USERS: Collection[BatchUser] = (Preprocessing(), Prediction(), Groups())
