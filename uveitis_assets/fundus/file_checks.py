"""Compares files of preprocessed images with what the stage indexes record.

All are compared by size, a sample by bytes and pixels. What is found damaged is noted for the next run of the batch,
which makes it again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import PreprocessConfiguration, PreprocessStage
from uveitis_assets.fundus.stage_files import required_files
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.tiling import reconstruction_error
from uveitis_assets.stages.artefact_files import (
    DamagedArtefactError,
    damaged_files,
    described,
    read_artefact,
    recorded_stamps,
)
from uveitis_assets.stages.index import Row
from uveitis_assets.stages.suspect_files import note_suspects
from uveitis_assets.storage.digests import short_digest
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key

_MASK_VALUES = (0, 255)


def sampled_rows(rows: Sequence[Row], n_images: int, seed: str) -> list[Row]:
    """At most so many rows of usable images, drawn by the seed; the same for the same rows."""
    usable = sorted((row for row in rows if row["quarantine_reason"] is None), key=lambda row: str(row["image_id"]))
    generator = np.random.default_rng(int(short_digest(seed), 16))
    chosen = generator.permutation(len(usable))[:n_images]
    return [usable[number] for number in sorted(chosen.tolist())]


class StageFiles:
    """Files of one stage of a batch, compared with its index.

    Args:
        store: where all artefacts are.
        lane: the lane's name.
        stage: the stage.
        batch: the batch's key.
        configuration: the lane's configuration, which says what is persisted.
    """

    def __init__(
        self,
        store: ArtefactStore,
        lane: str,
        stage: PreprocessStage,
        batch: str,
        configuration: PreprocessConfiguration,
    ) -> None:
        self._store = store
        self._stage: PreprocessStage = stage
        self._configuration = configuration
        self._index = store.stage_index(lane, stage, batch)
        self._asset = f"{lane}/{stage}[{batch}]"

    def damage(self, row: Row, *, contents: bool, ignored: Collection[Path] = ()) -> list[str]:
        """Recorded files of an image that the lane persists and that are missing or damaged, as findings.

        Args:
            row: of the stage's index.
            contents: whether the files are read and compared by checksum, not by size alone.
            ignored: files that are reported elsewhere.
        """
        key = artefact_key(row["image_id"])
        wanted = set(required_files(self._store, key, self._stage, self._configuration, row)).difference(ignored)
        errors = damaged_files(self._store.root, row, contents=lambda _: contents)
        return [self._finding(row, error) for error in errors if error.path in wanted]

    def mask_findings(self, row: Row, min_area_ratio: float) -> list[str]:
        """Opens an image's mask and compares bytes, size, values and covered share of the image."""
        path = self._store.roi_mask(artefact_key(row["image_id"]))
        try:
            mask = self._pixels(row, path, cv2.IMREAD_UNCHANGED)
        except FileNotFoundError:
            return [f"{row['image_id']}: {self._store.name_of(path)}: no such file; materialize {self._asset} again"]
        except DamagedArtefactError as error:
            return [self._finding(row, error)]
        if mask.shape != (row["height"], row["width"]):
            return [
                f"{row['image_id']}: {path.name}: expected a mask of {row['width']}x{row['height']} px, found shape "
                f"{mask.shape}"
            ]
        marked = int(np.count_nonzero(mask == _MASK_VALUES[1]))
        grey = mask.size - marked - int(np.count_nonzero(mask == _MASK_VALUES[0]))
        findings = []
        if grey:
            findings.append(f"{row['image_id']}: {path.name}: expected the values 0 and 255, found {grey} other pixels")
        if marked < min_area_ratio * mask.size <= row["area_ratio"] * mask.size:
            findings.append(
                f"{row['image_id']}: {path.name}: the mask covers {marked / mask.size:.3f} of the image, expected at "
                f"least {min_area_ratio} and {row['area_ratio']:.3f} as the index says"
            )
        return findings

    def reconstruction(self, row: Row) -> tuple[float, list[str]]:
        """Opens an image's tiles and the image they were cut from, and puts them together.

        Returns:
            The mean absolute error in grey levels, and findings about the files. The error is 0 where tiles or the
            image they were cut from are not persisted, or cannot be read, which is a finding.
        """
        key = artefact_key(row["image_id"])
        try:
            frames = ImageFrames.from_metadata(
                read_json(self._store.crop_metadata(key)), read_json(self._store.tiles_metadata(key))
            )
            native = frames.frame == "native"
            whole = self._store.normalized_crop(key) if native else self._store.global_image(key, frames.global_size)
            if "tiles" not in self._configuration.persist or not whole.is_file():
                return 0.0, []
            tiles = [
                self._pixels(row, self._store.tile(key, tile.tile_id), cv2.IMREAD_COLOR_RGB) for tile in frames.tiles
            ]
            picture = self._pixels(row, whole, cv2.IMREAD_COLOR_RGB)
        except FileNotFoundError as error:
            return 0.0, [f"{row['image_id']}: {error.filename}: no such file; materialize {self._asset} again"]
        except DamagedArtefactError as error:
            return 0.0, [self._finding(row, error)]
        except ValueError as error:
            return 0.0, [f"{row['image_id']}: {error}"]
        sizes = [(pixels.shape[1], pixels.shape[0]) for pixels in tiles]
        expected = [(tile.width, tile.height) for tile in frames.tiles]
        if sizes != expected or picture.shape[1::-1] != frames.tiling_size:
            return 0.0, [
                f"{row['image_id']}: expected tiles of {expected} px and an image of {frames.tiling_size} px, found "
                f"{sizes} and {picture.shape[1::-1]}; materialize {self._asset} again"
            ]
        return reconstruction_error(picture, frames.tiles, tiles), []

    def _pixels(self, row: Row, path: Path, flags: int) -> NDArray[np.uint8]:
        data = read_artefact(path, recorded_stamps(row).get(self._store.name_of(path)))
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is None:
            raise DamagedArtefactError(path, "expected a PNG, found data that cannot be decoded")
        return np.asarray(pixels, dtype=np.uint8)

    def _finding(self, row: Row, error: DamagedArtefactError) -> str:
        note_suspects(self._index, [self._store.name_of(error.path)])
        return f"{row['image_id']}: {described(self._store.root, [error])}; materialize {self._asset} again"
