"""The three preprocessing stages of one image: ROI mask, normalized crop, tiles; computed and written.

Each intermediate (raw pixels, mask, normalized crop) is taken from memory when an earlier stage just made it and is
read back from its artefact otherwise.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.color import ReferenceColor, normalize_crop
from uveitis_assets.fundus.configuration import PreprocessConfiguration, PreprocessStage, RoiMethod
from uveitis_assets.fundus.crop import crop_box
from uveitis_assets.fundus.roi.choice import RoiFunction, downscale_for_roi, find_roi
from uveitis_assets.fundus.roi.threshold import threshold_retina_mask
from uveitis_assets.fundus.stage_files import keep_only_tiles
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.imaging.reusable_buffers import thread_buffer
from uveitis_assets.imaging.tiling import cut_tile, image_frames, padded_canvas, reconstruction_error, render_global
from uveitis_assets.landing.content_hash import content_hash
from uveitis_assets.landing.image_file import decode_rgb
from uveitis_assets.landing.landed_files import read_landed_file
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.artefact_files import DamagedArtefactError, read_artefact, recorded_stamps
from uveitis_assets.stages.batch_task import DamagedStageError, ItemWork
from uveitis_assets.stages.index import Row
from uveitis_assets.storage.files import json_bytes
from uveitis_assets.storage.store import ArtefactStore, artefact_key

Pixels = NDArray[np.uint8]

# Which image is on the thread's canvas.
_canvas_holder = threading.local()


class PrerequisiteError(RuntimeError):
    """An earlier stage of the image has not been materialized with the present configuration."""


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What all images of a batch share; ``segment`` is SAM 2's function, None where no chain asks for it."""

    store: ArtefactStore
    configuration: PreprocessConfiguration
    reference_color: ReferenceColor | None = None
    segment: RoiFunction | None = None


class ImageStages(ItemWork[PreprocessStage]):
    """Computes the stages of one image, all in one thread, which begins with no other image meanwhile.

    Args:
        image: the registered image.
        settings: store and configuration.
        rows: valid rows of earlier stages, whose artefacts can be read back.
        sam2_result: SAM 2's mask at the ROI scale or its failure, where it was computed beforehand in a batch.
    """

    def __init__(
        self,
        image: RegisteredImage,
        settings: StageSettings,
        rows: Mapping[PreprocessStage, Row],
        sam2_result: Pixels | str | None = None,
    ) -> None:
        self.image = image
        self.key = artefact_key(image.image_id)
        self._settings = settings
        self._store = settings.store
        self._configuration = settings.configuration
        self._rows = dict(rows)
        self._sam2_result = sam2_result
        self._raw: Pixels | None = None
        self._mask: Pixels | None = None
        self._frames: ImageFrames | None = None
        self._canvas: Pixels | None = None
        self._canvas_key = object()

    def run(self, stage: PreprocessStage) -> dict[str, Any]:
        """Computes and writes one stage.

        Returns:
            The stage's own columns of its index row.

        Raises:
            QuarantineError: the image cannot be used.
            PrerequisiteError: an earlier stage is missing.
            DamagedStageError: a file of an earlier stage is not as it was written.
        """
        match stage:
            case "roi_masks":
                return self._roi_masks()
            case "normalized_crops":
                return self._normalized_crops()
            case "tiles":
                return self._tiles()

    # Stages -----------------------------------------------------------------------------------------------

    def _roi_masks(self) -> dict[str, Any]:
        raw = self._raw_image()
        roi = self._configuration.roi
        small = downscale_for_roi(raw, roi.downsample_max_side)
        result = find_roi(raw, small, self._roi_functions(), roi)
        self._mask = result.mask
        self.write(self._store.roi_mask(self.key), encode_png(result.mask))
        return {
            "method": result.method,
            "fallbacks": list(result.fallbacks),
            "area_ratio": result.area_ratio,
            "border_touch_ratio": result.border_touch_ratio,
            "width": raw.shape[1],
            "height": raw.shape[0],
        }

    def _normalized_crops(self) -> dict[str, Any]:
        crop, frames, metadata = self._normalize()
        persist = self._configuration.persist
        self._write_or_remove("crops" in persist, self._store.crop(self.key), crop)
        self._write_or_remove("norm" in persist, self._store.normalized_crop(self.key), self._normalized())
        self.write(self._store.crop_metadata(self.key), json_bytes(frames.crop_metadata()))
        self.write(self._store.normalization_metadata(self.key), json_bytes(metadata))
        x0, y0, x1, y1 = frames.crop_box
        return {
            **{"x0": x0, "y0": y0, "x1": x1, "y1": y1, "method": metadata["method"]},
            **{f"mean_{channel}": value for channel, value in zip("rgb", metadata["mean"], strict=True)},
            **{f"std_{channel}": value for channel, value in zip("rgb", metadata["std"], strict=True)},
            "channels_without_signal": metadata.get("channels_without_signal", []),
        }

    def _tiles(self) -> dict[str, Any]:
        if self._canvas is None:
            self._load_normalized()
        frames, canvas = self._laid_out(), self._padded()
        tiling, persist = self._configuration.tiling, self._configuration.persist
        frame = self._normalized()
        if tiling.frame == "global" or "global" in persist:
            black_from = frames.pad_xy[1] + frames.crop_size[1]
            global_image = render_global(canvas, frames.global_size, black_from=black_from)
            self._write_or_remove(
                "global" in persist, self._store.global_image(self.key, frames.global_size), global_image
            )
            if tiling.frame == "global":
                frame = global_image
        else:
            self._store.global_image(self.key, frames.global_size).unlink(missing_ok=True)
        tiles = [cut_tile(frame, tile) for tile in frames.tiles]
        names = set()
        if "tiles" in persist:
            for tile, pixels in zip(frames.tiles, tiles, strict=True):
                path = self._store.tile(self.key, tile.tile_id)
                names.add(path.name)
                self.write(path, encode_png(pixels))
        keep_only_tiles(self._store, self.key, names)
        self.write(self._store.tiles_metadata(self.key), json_bytes(frames.tiles_metadata(self.image.image_id)))
        black = cv2.countNonZero(cv2.inRange(frame, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
        return {
            "n_tiles": len(tiles),
            "global_size": frames.global_size,
            "frame": frames.frame,
            "reconstruction_abs_error": reconstruction_error(frame, frames.tiles, tiles),
            "black_ratio": black / (frame.shape[0] * frame.shape[1]),
        }

    # Intermediates ----------------------------------------------------------------------------------------

    def _raw_image(self) -> Pixels:
        if self._raw is None:
            self._raw = read_registered_image(self._store, self.image)
        return self._raw

    def _roi_functions(self) -> dict[RoiMethod, RoiFunction]:
        roi = self._configuration.roi
        functions: dict[RoiMethod, RoiFunction] = {}
        for method in roi.methods_for(self.image.dataset):
            match method:
                case "threshold":
                    functions[method] = partial(threshold_retina_mask, sat_threshold=roi.sat_threshold)
                case "uwf":
                    from uveitis_assets.fundus.roi.ultra_widefield import uwf_retina_mask

                    functions[method] = uwf_retina_mask
                case "sam2_prompted":
                    functions[method] = self._segment_with_sam2
        return functions

    def _segment_with_sam2(self, small_rgb: Pixels) -> Pixels | str:
        if self._sam2_result is not None:
            return self._sam2_result
        if self._settings.segment is None:
            raise AssertionError("a chain with sam2_prompted runs with a segment function")
        return self._settings.segment(small_rgb)

    def _mask_image(self) -> Pixels:
        if self._mask is None:
            path = self._store.roi_mask(self.key)
            mask = _decode_png(path, self._artefact("roi_masks", path), cv2.IMREAD_GRAYSCALE)
            raw = self._raw_image()
            if mask.shape != raw.shape[:2]:
                raise PrerequisiteError(f"{path}: expected {raw.shape[1::-1]} pixels, found {mask.shape[::-1]}")
            self._mask = mask
        return self._mask

    def _normalize(self) -> tuple[Pixels, ImageFrames, dict[str, Any]]:
        mask, raw = self._mask_image(), self._raw_image()
        x0, y0, x1, y1 = box = crop_box(mask, self._configuration.roi.crop_pad_px)
        crop = raw[y0:y1, x0:x1]
        self._frames = image_frames((raw.shape[1], raw.shape[0]), box, self._configuration.tiling)
        inside = self._new_canvas(self._frames)
        _, metadata = normalize_crop(
            crop, mask[y0:y1, x0:x1], self._configuration.normalize, self._settings.reference_color, out=inside
        )
        return crop, self._frames, metadata

    def _load_normalized(self) -> None:
        """Take the normalized crop from its artefact, or make it again in memory where it is not persisted."""
        self._require("normalized_crops")
        if "norm" not in self._configuration.persist:
            self._normalize()
            return
        metadata = json.loads(self._artefact("normalized_crops", self._store.crop_metadata(self.key)))
        width, height = metadata["orig_size"]
        x0, y0, x1, y1 = metadata["bbox_xyxy"]
        self._frames = image_frames((width, height), (x0, y0, x1, y1), self._configuration.tiling)
        path = self._store.normalized_crop(self.key)
        normalized = _decode_png(path, self._artefact("normalized_crops", path), cv2.IMREAD_COLOR_RGB)
        if normalized.shape[1::-1] != self._frames.crop_size:
            raise PrerequisiteError(
                f"{path}: expected {self._frames.crop_size} pixels, found {normalized.shape[1::-1]}"
            )
        inside = self._new_canvas(self._frames)
        inside[:] = normalized

    def _new_canvas(self, frames: ImageFrames) -> Pixels:
        """The square that the normalized crop is rendered into, here: in the view that is returned.

        Its memory is the thread's: an image is done when the thread begins with the next.
        """
        _canvas_holder.key = self._canvas_key
        memory = thread_buffer("image_stages.canvas", (frames.padded_side, frames.padded_side, 3))
        self._canvas, inside = padded_canvas(frames, memory)
        return inside

    def _laid_out(self) -> ImageFrames:
        if self._frames is None:
            raise AssertionError("frames are laid out with the normalized crop")
        return self._frames

    def _padded(self) -> Pixels:
        if self._canvas is None:
            raise AssertionError("the canvas is filled with the normalized crop")
        if getattr(_canvas_holder, "key", None) is not self._canvas_key:
            raise AssertionError(f"{self.key}: another image has taken this one's canvas")
        return self._canvas

    def _normalized(self) -> Pixels:
        (pad_x, pad_y), (width, height) = self._laid_out().pad_xy, self._laid_out().crop_size
        return self._padded()[pad_y : pad_y + height, pad_x : pad_x + width]

    def _require(self, stage: PreprocessStage) -> None:
        if stage not in self._rows:
            raise PrerequisiteError(
                f"{stage} has no artefact of this image with the present configuration and code, or a damaged one; "
                f"materialize {stage} for this batch first"
            )

    def _artefact(self, stage: PreprocessStage, path: Path) -> bytes:
        """A file of an earlier stage, compared with what its row records."""
        self._require(stage)
        stamp = recorded_stamps(self._rows[stage]).get(self._store.name_of(path))
        try:
            return read_artefact(path, stamp)
        except FileNotFoundError as error:
            raise PrerequisiteError(f"{path}: no such file; materialize the stage before this one again") from error
        except DamagedArtefactError as error:
            raise DamagedStageError(stage, error) from error

    # Writing ----------------------------------------------------------------------------------------------

    def _write_or_remove(self, wanted: bool, path: Path, image: Pixels) -> None:
        if wanted:
            self.write(path, encode_png(image))
        else:
            path.unlink(missing_ok=True)


def read_registered_image(store: ArtefactStore, image: RegisteredImage) -> Pixels:
    """Reads and decodes a registered image's file once.

    Returns:
        (H, W, 3) uint8 RGB, EXIF orientation applied.

    Raises:
        QuarantineError: the file is missing, has other bytes than were registered, or is no usable image. The
            detail names the image id, never the file: its name may name a patient.
    """
    inside = image.path.is_relative_to(store.raw)
    relative = image.path.relative_to(store.raw).as_posix() if inside else image.path.as_posix()
    name = image.name or image.image_id + image.path.suffix
    data = read_landed_file(store.raw, relative, name)
    found = content_hash(data)
    if found != image.content_hash:
        raise QuarantineError(
            "changed_since_registration",
            f"{name}: expected content {image.content_hash[:16]}, found {found[:16]}; register the lane again",
        )
    return decode_rgb(data, name)


def _decode_png(path: Path, data: bytes, flags: int) -> Pixels:
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    if image is None:
        raise PrerequisiteError(f"{path}: expected a PNG, found damaged data; delete it and run the stage before again")
    return np.asarray(image, dtype=np.uint8)
