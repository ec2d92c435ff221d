"""Small files of other tools, each with one image ``a.jpg`` and lesions of the class ``vessel``."""

from typing import Any

from uveitis_assets_tests.labels.importing.lanes import HEIGHT, WIDTH

OUTLINE = [[310.5, 120.25], [420.5, 180.75], [380.25, 260.5], [300.5, 200.5]]


def coco(**row: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, **row}],
        "categories": [{"id": 3, "name": "vessel"}],
    }


def labelme(*shapes: dict[str, Any]) -> dict[str, Any]:
    labelled = [{"label": "vessel", **shape} for shape in shapes]
    return {"imagePath": "a.jpg", "imageWidth": WIDTH, "imageHeight": HEIGHT, "shapes": labelled}


def label_studio(*results: dict[str, Any], image: str = "/data/upload/3/01234567-a.jpg") -> list[dict[str, Any]]:
    rows = [{"original_width": WIDTH, "original_height": HEIGHT, "to_name": "image", **result} for result in results]
    return [{"id": 9, "data": {"image": image}, "annotations": [{"id": 2, "result": rows}], "predictions": []}]


def rectangle(**value: float) -> dict[str, Any]:
    return {"type": "rectanglelabels", "value": {**value, "rectanglelabels": ["vessel"]}}


def cvat(*elements: str) -> str:
    inside = "\n".join(elements)
    return f'<annotations><image name="a.jpg" width="{WIDTH}" height="{HEIGHT}">\n{inside}</image></annotations>'
