"""Imports label files of another tool into a lane: reads, matches, converts and writes them.

An image is imported whole or not at all: with part of its lesions it would teach the missing ones as background. So an
image of which any row is refused gets no label file, and every refused row is reported with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.importing.class_names import ClassNames
from uveitis_assets.labels.importing.coco_json import read_coco
from uveitis_assets.labels.importing.cvat_xml import read_cvat
from uveitis_assets.labels.importing.foreign import ForeignFileError, ForeignLabels, ReaderOptions
from uveitis_assets.labels.importing.image_labels import ImageImport
from uveitis_assets.labels.importing.label_studio import read_label_studio
from uveitis_assets.labels.importing.labelme import read_labelme
from uveitis_assets.labels.importing.lane_images import LaneImages
from uveitis_assets.labels.importing.request import ForeignFormat, ImportReport, ImportRequest
from uveitis_assets.labels.importing.source_files import read_source_files, reader_options
from uveitis_assets.labels.importing.text_rows import read_dota, read_yolo
from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore

Reader = Callable[[Iterable[tuple[str, bytes]], ReaderOptions], ForeignLabels]
_READERS: Mapping[ForeignFormat, Reader] = {
    "coco": read_coco,
    "yolo": partial(read_yolo, rows="yolo"),
    "yolo-obb": partial(read_yolo, rows="yolo-obb"),
    "yolo-seg": partial(read_yolo, rows="yolo-seg"),
    "dota": read_dota,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "label-studio": read_label_studio,
}


def import_labels(
    store: ArtefactStore, lane: DatasetConfiguration, labels: LabelConfiguration, request: ImportRequest
) -> ImportReport:
    """Convert foreign label files into the lane's own and write them beside its landed images.

    Raises:
        ForeignFileError: files that are not of the format or list no image, or options that are missing or wrong;
            nothing is written.
        OSError: a label file cannot be written; those of the images before are.
    """
    if labels.format == "none":
        raise ForeignFileError(f"{lane.name}: expected a lane with `labels.format: obb` or `mask`, found none")
    class_map = load_class_map()
    space = class_map.label_space(labels.format, label_classes=labels.label_classes)
    options = reader_options(request)
    first = request.first_class if request.format.startswith("yolo") and request.names is None else None
    names = ClassNames(space, request.classes, class_map.names, first=first)
    foreign = _READERS[request.format](read_source_files(request), options)
    if not foreign.images and not foreign.refusals:
        raise ForeignFileError(f"{request.source}: expected {request.format} labels of images, found none")
    work = ImageImport(LaneImages(store, lane, labels.format), labels, space, names, request)
    # One image after the other: the label files of all would fill the memory.
    for of_image in work.labels_of_images(foreign):
        if request.dry_run:
            continue
        for path, data in of_image.files:
            write_bytes(path, data)
        # After the new ones are there: whatever ends this process, the image keeps labels.
        for path in of_image.stale:
            path.unlink(missing_ok=True)
    return work.report
