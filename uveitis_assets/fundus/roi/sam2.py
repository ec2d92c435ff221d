"""The ``sam2_prompted`` ROI method: SAM 2 with fixed prompt points finds the retina.

It loads a SAM 2 model strictly, predicts candidate masks, chooses one and cleans it. Whether the mask is plausible is
checked by the caller. torch and sam2 are imported when a model is loaded, not with this module.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import Sam2Configuration
from uveitis_assets.fundus.roi.sam2_checkpoint import CheckpointReport, compare_checkpoint, read_sam2_checkpoint
from uveitis_assets.fundus.roi.sam2_mask_choice import choose_mask, clean_mask
from uveitis_assets.fundus.roi.sam2_model import INSTALL_HINT, Sam2UnavailableError, build_sam2_model

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]

# SAM 2's own normalization of RGB values in [0, 1] (ImageNet statistics).
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

# Building a model imports sam2 (global Hydra state) and draws from torch's global random generator.
_build_lock = threading.Lock()


class Sam2Segmenter:
    """A loaded SAM 2 model with its prompt; made by :func:`load_sam2_segmenter`.

    One instance may be shared by threads: forward passes run one at a time, which bounds the memory.
    """

    def __init__(
        self,
        model: Any,
        configuration: Sam2Configuration,
        device: Literal["cpu", "cuda"],
        precision: Literal["float32", "bfloat16"],
        report: CheckpointReport,
    ) -> None:
        self.configuration = configuration
        self.device: Literal["cpu", "cuda"] = device
        self.precision: Literal["float32", "bfloat16"] = precision
        self.report = report
        self.model = model
        self._lock = threading.Lock()
        self._batch_size = configuration.batch_size

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8] | str]:
        """Find the retina in each image.

        The image's result does not depend on the images beside it, but for rounding in the last bits of the logits.

        Args:
            images: RGB uint8 arrays (H, W, 3), already downscaled; sizes may differ.

        Returns:
            For each image its mask, uint8 (H, W) of 0 and 255, one component without holes; or the reason why there
            is none: ``non-finite mask logits``, ``non-finite scores``, ``empty mask`` or ``empty mask after
            post-processing``.

        Raises:
            ValueError: an image has another shape or dtype.
            Sam2UnavailableError: CUDA memory does not suffice for a single image.
        """
        for index, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise ValueError(
                    f"image {index} of {len(images)}: expected RGB uint8 (H, W, 3), found {image.dtype} {image.shape}"
                )
        results: list[NDArray[np.uint8] | str] = []
        while len(results) < len(images):
            results.extend(self._segment_next(images[len(results) :]))
        return results

    def _segment_next(self, remaining: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8] | str]:
        """Masks of the first images of ``remaining``, as many as fit.

        Halves the batch when CUDA memory runs out.
        """
        import torch

        while True:
            batch = remaining[: self._batch_size]
            try:
                with self._lock:
                    found = self.candidates(batch)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise Sam2UnavailableError(
                        f"{self.report.model_cfg} on {self.device}: out of memory with a single image ({error}); free "
                        "the GPU, choose a smaller model or set roi.sam2.device to cpu"
                    ) from error
                self._batch_size = len(batch) // 2
                logger.warning(
                    "out of memory with %d images per forward pass; going on with %d (roi.sam2.batch_size is %d)",
                    len(batch),
                    self._batch_size,
                    self.configuration.batch_size,
                )
            else:
                return [candidate if isinstance(candidate, str) else self._finish(*candidate) for candidate in found]
            # Outside the except block: the exception's traceback keeps the failed pass's tensors alive.
            torch.cuda.empty_cache()

    def _finish(self, masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.uint8] | str:
        chosen = choose_mask(masks, scores)
        if chosen is None:
            return "empty mask"
        mask = clean_mask(masks[chosen], self.configuration.open_kernel, self.configuration.close_kernel)
        return mask if mask.any() else "empty mask after post-processing"

    def candidates(
        self, images: Sequence[NDArray[np.uint8]]
    ) -> list[tuple[NDArray[np.bool_], NDArray[np.float32]] | str]:
        """Candidate masks (C, H, W) and scores (C,) of each image, or the reason why there are none.

        These are the steps of sam2's SAM2ImagePredictor with the prompt decoder batched as well and without its
        state, its message per image on the root logger and its scripted transforms. Not for several threads at once:
        ``segment`` is.
        """
        import torch

        model = self.model
        with (
            torch.inference_mode(),
            torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            pixels = torch.stack([self._model_input(image) for image in images])
            image_embedding, high_resolution_features = self._encode(pixels)
            points = torch.tensor(self.configuration.points_norm, dtype=torch.float32, device=self.device)
            coordinates = (points[:, :2] * model.image_size).expand(len(images), -1, -1)
            labels = points[:, 2].to(torch.int32).expand(len(images), -1)
            sparse, dense = model.sam_prompt_encoder(points=(coordinates, labels), boxes=None, masks=None)
            logits, scores, _, _ = model.sam_mask_decoder(
                image_embeddings=image_embedding,
                image_pe=model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=self.configuration.multimask_output,
                repeat_image=False,
                high_res_features=high_resolution_features,
            )
            logits, scores = logits.float(), scores.float()
            return [_candidate(logits[index], scores[index], image) for index, image in enumerate(images)]

    def _model_input(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """The image as the encoder wants it: (3, S, S), normalized, squeezed to the model's square."""
        import torch
        from torch.nn import functional

        side = self.model.image_size
        # A copy: torch warns about read-only arrays, as decoders and memory maps hand out.
        pixels = torch.from_numpy(image.copy()).to(self.device).permute(2, 0, 1).float() / 255.0
        pixels = functional.interpolate(
            pixels[None], (side, side), mode="bilinear", align_corners=False, antialias=True
        )[0]
        mean = torch.tensor(PIXEL_MEAN, device=self.device)[:, None, None]
        deviation = torch.tensor(PIXEL_STD, device=self.device)[:, None, None]
        return (pixels - mean) / deviation

    def _encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """Image embedding (N, C, S/16, S/16) and the finer features for the mask decoder."""
        model = self.model
        features = model.forward_image(pixels)["backbone_fpn"][-model.num_feature_levels :]
        embedding = features[-1]
        if model.directly_add_no_mem_embed:
            embedding = embedding + model.no_mem_embed.reshape(1, -1, 1, 1)
        return embedding, features[:-1] or None


def _candidate(
    logits: torch.Tensor, scores: torch.Tensor, image: NDArray[np.uint8]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]] | str:
    """Masks of the image's size from logits (C, h, w), with scores (C,); or why there are none."""
    import torch
    from torch.nn import functional

    if not bool(torch.isfinite(logits).all()):
        return "non-finite mask logits"
    if not bool(torch.isfinite(scores).all()):
        return "non-finite scores"
    masks = functional.interpolate(logits[None], image.shape[:2], mode="bilinear", align_corners=False)[0] > 0.0
    return masks.cpu().numpy(), scores.cpu().numpy()


def load_sam2_segmenter(
    configuration: Sam2Configuration, checkpoint: Path, *, precision: Precision = "auto"
) -> Sam2Segmenter:
    """Build the configured SAM 2 model from an official checkpoint; several threads may call it.

    ``configuration.model_cfg`` is a name inside the sam2 package (``configs/sam2.1/sam2.1_hiera_b+.yaml``) or the
    absolute path of a YAML file of the same form. Either may build classes of sam2 only (``BUILDABLE_CLASSES``), take
    no weights from elsewhere, and may not have a Hydra defaults list.

    Args:
        configuration: Settings of the method.
        checkpoint: The file, ``{"model": state_dict}``. It is read with ``weights_only``: no code in it runs.
        precision: ``auto`` is bfloat16 autocast on CUDA and float32 on the CPU. There bfloat16 takes half the time on
            a processor with AMX, but twice with plain AVX-512 and seven times with AVX2 (benchmarks/sam2_roi.py).

    Raises:
        Sam2UnavailableError: torch or sam2 is not installed; the device is absent; the model configuration or the
            checkpoint is absent, not readable or of another form; or any key is missing, unexpected or of another
            shape.
    """
    try:
        device = _resolve_device(configuration.device)
    except ImportError as error:
        raise Sam2UnavailableError(f"expected torch to be installed, found {error}; {INSTALL_HINT}") from error
    state = read_sam2_checkpoint(checkpoint)
    with _build_lock:
        model = build_sam2_model(configuration)
    report = compare_checkpoint(checkpoint, configuration.model_cfg, model.state_dict(), state)
    if not report.complete:
        raise Sam2UnavailableError(
            f"{checkpoint}: expected exactly the tensors of {configuration.model_cfg}, found {report.summary()}; take "
            "the checkpoint of the same model size and SAM 2 version or set roi.sam2.model_cfg to the one it belongs to"
        )
    model.load_state_dict(state, strict=True)
    model = model.to(device).eval().requires_grad_(False)
    chosen: Literal["float32", "bfloat16"] = (
        precision if precision != "auto" else "bfloat16" if device == "cuda" else "float32"
    )
    logger.info(
        "SAM 2 %s from %s on %s (%s): %s", configuration.model_cfg, checkpoint, device, chosen, report.summary()
    )
    return Sam2Segmenter(model, configuration, device, chosen, report)


def _resolve_device(requested: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    import torch

    has_cuda = torch.cuda.is_available()
    if requested == "cuda" and not has_cuda:
        built_for = torch.version.cuda or "no CUDA"
        raise Sam2UnavailableError(
            f"roi.sam2.device: expected a CUDA device, found none (torch {torch.__version__}, built for {built_for}); "
            "run on a machine or in a container with a GPU, or set the device to auto or cpu"
        )
    if requested == "auto":
        return "cuda" if has_cuda else "cpu"
    return requested
