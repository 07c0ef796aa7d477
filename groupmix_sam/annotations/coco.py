"""COCO annotation files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..masks import _extent, decode_rle, encode_rle, fill_polygons
from .types import AnnotatedPicture, Thing, _categories, _from, _place, _readable, _score

__all__ = ["from_coco", "to_coco"]


def to_coco(
    pictures: Iterable[AnnotatedPicture], folder: Path | None = None, categories: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return pictures as a COCO file in `folder` names them, by default the working directory's; masks are compressed RLE.

    Args:
        pictures: With their things.
        folder: Where the file will lie.
        categories: Names, counted from 1; by default those that occur, sorted.
    """
    pictures = list(pictures)
    names = categories or _categories(pictures)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        height, width = picture.size
        images.append({"id": number, "file_name": _from(folder, picture.path), "width": width, "height": height})
        for thing in picture.things:
            left, top, right, bottom, area = _extent(decode_rle(thing.mask))
            annotation: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number}
            annotation |= {"category_id": _place(thing.category, names) + 1, "segmentation": thing.mask, "area": area}
            annotation |= {"bbox": [left, top, right - left, bottom - top], "iscrowd": 0, "score": thing.score}
            annotations.append(annotation | ({"prompt": thing.prompt} if thing.prompt else {}))
    named = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": named}


def from_coco(content: Mapping[str, Any], folder: Path | None = None) -> list[AnnotatedPicture]:
    """Return the pictures of a COCO file in `folder`, with RLE or polygons."""
    with _readable("COCO file"):
        names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        sizes = {entry["id"]: (int(entry["height"]), int(entry["width"])) for entry in content["images"]}
        things: dict[Any, list[Thing]] = {number: [] for number in sizes}
        for entry in content["annotations"]:
            shape, size = entry["segmentation"], sizes[entry["image_id"]]
            mask = decode_rle(shape) if isinstance(shape, Mapping) else fill_polygons([[_pairs(ring)] for ring in shape], size)
            category = names.get(entry["category_id"], str(entry["category_id"]))
            thing = Thing(encode_rle(mask), _score(entry), category, entry.get("prompt"))
            things[entry["image_id"]].append(thing)
        return [
            AnnotatedPicture((folder or Path()) / entry["file_name"], sizes[entry["id"]], things[entry["id"]])
            for entry in content["images"]
        ]


def _pairs(numbers: Sequence[float]) -> list[list[float]]:
    return np.array(numbers, dtype=np.float64).reshape(-1, 2).tolist()
