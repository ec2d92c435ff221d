"""Detections as pre-annotations for CVAT: its XML format for images, version 1.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from uveitis_assets.detection.exports.predicted_images import PredictedImage
from uveitis_assets.storage.files import write_bytes


def write_cvat(images: Sequence[PredictedImage], names: Mapping[int, str], folder: Path) -> None:
    """Write ``annotations.xml`` ("CVAT for images 1.1"): boxes, or polygons of oriented boxes, px.

    The score is the attribute ``score``, which CVAT keeps where the task's labels have it. Labels of the task have to
    be named as the categories, and its images as here.

    Args:
        images: what is written.
        names: category ids and names.
        folder: where the file goes.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for _, name in sorted(names.items()):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        attribute = ElementTree.SubElement(ElementTree.SubElement(label, "attributes"), "attribute")
        for key, value in {
            "name": "score",
            "mutable": "False",
            "input_type": "text",
            "default_value": "",
            "values": "",
        }.items():
            ElementTree.SubElement(attribute, key).text = value
    for number, image in enumerate(images):
        entry = ElementTree.SubElement(
            root,
            "image",
            {"id": str(number), "name": image.file_name, "width": str(image.size[0]), "height": str(image.size[1])},
        )
        for row, label_id in enumerate(image.labels.tolist()):
            common = {"label": names[label_id], "source": "auto", "occluded": "0", "z_order": "0"}
            if image.polygons is None:
                sides = zip(("xtl", "ytl", "xbr", "ybr"), image.boxes[row].tolist(), strict=True)
                shape = ElementTree.SubElement(entry, "box", common | {side: f"{value:.2f}" for side, value in sides})
            else:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in image.polygons[row].tolist())
                shape = ElementTree.SubElement(entry, "polygon", common | {"points": points})
            ElementTree.SubElement(shape, "attribute", {"name": "score"}).text = f"{image.scores[row]:.4f}"
    ElementTree.indent(root)
    path = folder / "annotations.xml"
    write_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
