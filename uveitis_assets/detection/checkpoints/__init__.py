"""Detector checkpoints: loading, earlier formats, lineage, the weights of a fold."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uveitis_assets.detection.checkpoints.loading import load_trained_detector

__all__ = ["load_trained_detector"]


def __getattr__(name: str) -> Any:
    """Imports ``load_trained_detector`` on first access, because loading imports torch.

    Scripts import it from here.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from uveitis_assets.detection.checkpoints.loading import load_trained_detector

    return load_trained_detector
