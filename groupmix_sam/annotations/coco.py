"""COCO annotation files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..masks import decode_rle, encode_rle, fill_polygons, mask_extent
from .types import AnnotatedImage, Instance, category_index, category_names, readable, relative_path, score_of

__all__ = ["from_coco", "to_coco"]


def to_coco(
    images: Iterable[AnnotatedImage], folder: Path | None = None, categories: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return images as a COCO file in `folder` names them, by default the working directory's; masks are compressed RLE.

    Args:
        images: With their instances.
        folder: Where the file will lie.
        categories: Names, counted from 1; by default those that occur, sorted.
    """
    images = list(images)
    names = categories or category_names(images)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        height, width = image.size
        entries.append({"id": number, "file_name": relative_path(folder, image.path), "width": width, "height": height})
        for instance in image.instances:
            left, top, right, bottom, area = mask_extent(decode_rle(instance.mask))
            annotation: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number}
            annotation |= {
                "category_id": category_index(instance.category, names) + 1,
                "segmentation": instance.mask,
                "area": area,
            }
            annotation |= {"bbox": [left, top, right - left, bottom - top], "iscrowd": 0, "score": instance.score}
            annotations.append(annotation | ({"prompt": instance.prompt} if instance.prompt else {}))
    named = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"images": entries, "annotations": annotations, "categories": named}


def from_coco(content: Mapping[str, Any], folder: Path | None = None) -> list[AnnotatedImage]:
    """Return the images of a COCO file in `folder`, with RLE or polygons."""
    with readable("COCO file"):
        names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        sizes = {entry["id"]: (int(entry["height"]), int(entry["width"])) for entry in content["images"]}
        instances: dict[Any, list[Instance]] = {number: [] for number in sizes}
        for entry in content["annotations"]:
            shape, size = entry["segmentation"], sizes[entry["image_id"]]
            mask = decode_rle(shape) if isinstance(shape, Mapping) else fill_polygons([[_pairs(ring)] for ring in shape], size)
            category = names.get(entry["category_id"], str(entry["category_id"]))
            instance = Instance(encode_rle(mask), score_of(entry), category, entry.get("prompt"))
            instances[entry["image_id"]].append(instance)
        return [
            AnnotatedImage((folder or Path()) / entry["file_name"], sizes[entry["id"]], instances[entry["id"]])
            for entry in content["images"]
        ]


def _pairs(numbers: Sequence[float]) -> list[list[float]]:
    return np.array(numbers, dtype=np.float64).reshape(-1, 2).tolist()
