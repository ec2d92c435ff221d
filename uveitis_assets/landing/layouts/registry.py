"""The registry of layouts: which names a configuration may give, and how each folder is read.

Loading the definitions loads every layout: its module imports nothing heavy, and what computes (array or decoding
libraries) is imported inside ``scan``, ``probe`` and ``combine``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uveitis_assets.landing.samples import LabelFormat, LandingScan, SampleFacts

if TYPE_CHECKING:
    from uveitis_assets.landing.configuration import DatasetConfiguration
    from uveitis_assets.landing.folder_tree import LandingTree


def _lane_name_alone(lane: str) -> tuple[str, ...]:
    return (lane,)


def _facts_of_first_file(facts: Sequence[SampleFacts]) -> SampleFacts:
    return facts[0]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the folders of one kind of dataset are read.

    Attributes:
        name: what ``layout`` of a defs.yaml gives.
        scan: describes all samples of a folder by its names and tables; opens no image.
        probe: looks at the bytes of one file, whose name opens every message, and raises QuarantineError where the
            file cannot be used. Called once per new or changed file, from several threads, so that only a few files
            are in memory at a time.
        combine: facts of a sample from those of its files, in their order; may raise QuarantineError too, for a series
            of images of different sizes for instance. By default those of the first file.
        dataset_tags: what image ids of a lane of this name begin with.
        lesion_labels: label formats in which the layout finds lesions.
        patients_from_names: the layout knows no more of a patient than the name of each file, so that ``patients`` of
            a configuration may say where patients stand.
    """

    name: str
    scan: Callable[[DatasetConfiguration, LandingTree], LandingScan]
    probe: Callable[[bytes, str], SampleFacts]
    combine: Callable[[Sequence[SampleFacts]], SampleFacts] = _facts_of_first_file
    dataset_tags: Callable[[str], tuple[str, ...]] = _lane_name_alone
    lesion_labels: tuple[LabelFormat, ...] = ()
    patients_from_names: bool = False


_LAYOUTS: dict[str, Layout] = {}


def register_layout(layout: Layout) -> None:
    """Add a layout, so that configurations may name it; the same one again changes nothing.

    Raises:
        ValueError: another layout has the name.
    """
    if _LAYOUTS.setdefault(layout.name, layout) != layout:
        raise ValueError(f"expected a layout name that is free, found {layout.name}: another layout has it; rename one")


def unregister_layout(name: str) -> None:
    """Take a layout out of the registry again; configurations that name it are refused from then on.

    Raises:
        ValueError: there is none of this name.
    """
    del _LAYOUTS[find_layout(name).name]


def layout_names() -> tuple[str, ...]:
    """Names of all layouts in the order of their registration."""
    return tuple(_LAYOUTS)


def find_layout(name: str) -> Layout:
    """The layout of a name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in _LAYOUTS:
        *others, last = (f"'{known}'" for known in _LAYOUTS)
        raise ValueError(f"expected a layout among {', '.join(others)} or {last}, found {name!r}")
    return _LAYOUTS[name]
