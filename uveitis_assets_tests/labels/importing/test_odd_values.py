"""Files with any value in any place are imported or refused by name: no value ends the command otherwise."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from uveitis_assets.labels.importing.foreign import ForeignFileError
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.labels.importing.documents import OUTLINE, coco, label_studio, labelme, rectangle
from uveitis_assets_tests.labels.importing.lanes import HEIGHT, ORIGINALS, WIDTH, land, run

NAMED: dict[str, Any] = {"classes": {"vessel": "vascularite"}}
ODD_VALUES: list[Any] = [None, True, -1, 10**30, 1e300, math.nan, "x", "\ud800", [], {"a": 1}, [1, 2, 3]]
DOCUMENTS: dict[str, Any] = {
    "coco": coco(bbox=[320, 240, 100, 72], segmentation=[[100, 100, 220, 100, 100, 180]], score=0.9),
    "coco, run lengths": coco(
        segmentation={"size": [HEIGHT, WIDTH], "counts": [60000, 200, WIDTH * HEIGHT - 60200]}, bbox=[1, 2, 3, 4]
    ),
    "labelme": labelme(
        {"points": OUTLINE, "shape_type": "polygon"}, {"points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
    ),
    "label-studio": label_studio(rectangle(x=10, y=10, width=10, height=10, rotation=5)),
}


def variants(document: Any) -> Iterator[Any]:
    """The document with each of its values in turn replaced by each odd value, or taken away."""
    for path in paths(document):
        for odd in ODD_VALUES:
            changed = copy.deepcopy(document)
            parent(changed, path)[path[-1]] = odd
            yield changed
        without = copy.deepcopy(document)
        del parent(without, path)[path[-1]]
        yield without


def paths(value: Any) -> Iterator[list[Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield [key]
        yield from ([key, *rest] for rest in paths(entry))


def parent(document: Any, path: list[Any]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


@pytest.mark.parametrize(
    ("name", "masks"), [("coco", False), ("coco, run lengths", True), ("labelme", False), ("label-studio", False)]
)
def test_no_value_of_a_file_ends_an_import_without_naming_it(store: ArtefactStore, name: str, *, masks: bool) -> None:
    land(store, "a.jpg", folder=ORIGINALS if masks else "uwf-700/Images/Uveitis")
    n_imported = 0
    messages: list[str] = []
    for document in variants(DOCUMENTS[name]):
        text = json.dumps(document)
        options: dict[str, Any] = {"format": name.partition(",")[0], "masks": masks, "min_confidence": 0.5}
        try:
            report = run(store, {"all.json": text}, dry_run=True, **options, **NAMED)
        except ForeignFileError as error:
            messages.append(str(error))
            continue
        assert all(refusal.place.startswith("all.json") for refusal in report.refusals), text
        assert report.written or report.refusals or name == "label-studio", text
        n_imported += bool(report.written)
    assert messages
    assert all(message.startswith(("all.json", str(store.root / "foreign"))) for message in messages)
    assert n_imported
