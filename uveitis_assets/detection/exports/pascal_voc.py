"""Detections as Pascal VOC annotations, one XML file for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from uveitis_assets.detection.exports.predicted_images import PredictedImage
from uveitis_assets.storage.files import write_bytes


def write_pascal_voc(images: Sequence[PredictedImage], names: Mapping[int, str], folder: Path) -> None:
    """Write ``Annotations/<image's path without suffix>.xml``.

    Boxes are VOC's: the first pixel is 1 and ``xmax`` and ``ymax`` are inside, so that pixel edges x0..x1 become
    x0 + 1..x1, not rounded. ``confidence`` holds the score. Oriented boxes are written as the upright ones.

    Args:
        images: what is written.
        names: category ids and names.
        folder: where the files go.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge development kit, 2012.
    """
    for image in images:
        root = ElementTree.Element("annotation")
        _text(root, "folder", str(Path(image.file_name).parent))
        _text(root, "filename", Path(image.file_name).name)
        size = ElementTree.SubElement(root, "size")
        for name, value in zip(("width", "height", "depth"), (*image.size, 3), strict=True):
            _text(size, name, value)
        _text(root, "segmented", 0)
        for box, label, score in zip(image.boxes.tolist(), image.labels.tolist(), image.scores.tolist(), strict=True):
            lesion = ElementTree.SubElement(root, "object")
            _text(lesion, "name", names[label])
            _text(lesion, "pose", "Unspecified")
            _text(lesion, "truncated", 0)
            _text(lesion, "difficult", 0)
            _text(lesion, "confidence", f"{score:.4f}")
            place = ElementTree.SubElement(lesion, "bndbox")
            values = (box[0] + 1, box[1] + 1, box[2], box[3])
            for name, value in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True):
                _text(place, name, f"{value:.2f}".rstrip("0").rstrip("."))
        ElementTree.indent(root)
        write_bytes(
            folder / "Annotations" / f"{image.stem}.xml",
            ElementTree.tostring(root, encoding="utf-8", xml_declaration=True),
        )


def _text(parent: ElementTree.Element, name: str, value: object) -> None:
    ElementTree.SubElement(parent, name).text = str(value)
