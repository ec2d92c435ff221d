"""Matches label files to images by their names below the layout's folders.

One label goes to one image: the image of exactly its name first, then one that differs in Unicode form or extension, if
no other image could be meant. A label that could be of several images is given to none of them, because lesions of
another photograph do more harm than a label that is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from unicodedata import normalize

from uveitis_assets.landing.samples import LandingProblem


@dataclass(frozen=True, slots=True)
class LabelMatch:
    """Label per image; ``doubtful_labels`` could be of several images, which are then ``doubtful_images``."""

    label_by_image: dict[str, str]
    doubtful_images: frozenset[str]
    doubtful_labels: frozenset[str]
    problems: tuple[LandingProblem, ...]


class LabelMatcher:
    """Matches label files to the images of a layout by the names in their paths ``<folder>/<name>``.

    Args:
        images: all images of the layout.
        extension_counts: ask first for labels whose name has the image's extension too, as masks have.
    """

    def __init__(self, images: Sequence[str], *, extension_counts: bool) -> None:
        whole: list[Callable[[str], str]] = [_name, lambda file: normalize("NFC", _name(file))]
        stem: list[Callable[[str], str]] = [_stem, lambda file: normalize("NFC", _stem(file))]
        self._keys = [*whole, *stem] if extension_counts else stem
        self._images = [_grouped(images, key) for key in self._keys]
        self._look_alikes = {key: group for key, group in self._images[1].items() if len(group) > 1}

    def match(self, labels: Sequence[str]) -> LabelMatch:
        """Match the label files of one folder."""
        label_by_image: dict[str, str] = {}
        doubtful_images: set[str] = set()
        problems: list[LandingProblem] = []
        open_labels = list(labels)
        doubtful_labels: set[str] = set()
        for key, images_by_key in zip(self._keys, self._images, strict=True):
            for name, candidates in _grouped(open_labels, key).items():
                images = images_by_key.get(name, [])
                free = [image for image in images if image not in label_by_image and image not in doubtful_images]
                if not free:
                    continue
                if len(images) == len(candidates) == 1:
                    label_by_image[free[0]] = candidates[0]
                    continue
                doubtful_images.update(free)
                doubtful_labels.update(candidates)
                problems.append(_ambiguous(candidates, images))
            settled = doubtful_labels.union(label_by_image.values())
            open_labels = [label for label in open_labels if label not in settled]
        problems += self._without_own_label(label_by_image, doubtful_images)
        return LabelMatch(label_by_image, frozenset(doubtful_images), frozenset(doubtful_labels), tuple(problems))

    def _without_own_label(
        self, label_by_image: dict[str, str], doubtful_images: Iterable[str]
    ) -> list[LandingProblem]:
        """Report images without a label whose name looks like that of an image which has one."""
        problems = []
        for name, images in self._look_alikes.items():
            owners = [
                image for image in images if image in label_by_image and self._keys[1](label_by_image[image]) == name
            ]
            without = [image for image in images if image not in label_by_image and image not in doubtful_images]
            if owners and without:
                labels = ", ".join(label_by_image[image] for image in owners)
                detail = (
                    f"expected names that differ in more than their Unicode form, found {', '.join(images)}; {labels} "
                    f"is given to the image of exactly its name, {len(without)} have none; rename the images that look "
                    "alike, and their labels with them"
                )
                problems.append(LandingProblem(without[0], "ambiguous_label", detail))
        return problems


def _ambiguous(labels: Sequence[str], images: Sequence[str]) -> LandingProblem:
    detail = (
        f"expected one label for one image of its name, found {', '.join(labels)} for {', '.join(images)}; it is given "
        "to none, and images without another label are unlabelled; give each image a name of its own, and its label "
        "the same name"
    )
    return LandingProblem(labels[0], "ambiguous_label", detail)


def _grouped(files: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(key(file), []).append(file)
    return groups


def _name(file: str) -> str:
    return file.split("/", 1)[1]


def _stem(file: str) -> str:
    # Images and labels are told by their extensions: each has one.
    return _name(file).rpartition(".")[0]
