"""LabelMe annotation files, which X-AnyLabeling reads too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..masks import TOLERANCE, fill_polygons, join_rings, to_polygons
from .types import AnnotatedImage, Instance, image_path, readable, relative_path, score_of

__all__ = ["from_labelme", "to_labelme"]


def to_labelme(image: AnnotatedImage, folder: Path | None = None, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return an image and its instances as the content of a LabelMe file.

    Each part of an instance is a polygon, and the parts of an instance share a `group_id`. A hole is joined to its outline by a
    cut of no width.

    Args:
        image: With its instances.
        folder: Where the file will lie; by default the working directory.
        tolerance: See `to_polygons`.

    Raises:
        MissingExtraError: there is no OpenCV.
    """
    shapes = []
    for number, instance in enumerate(image.instances, 1):
        polygons = to_polygons(instance.mask, tolerance)
        for rings in polygons:
            shape: dict[str, Any] = {"label": instance.category, "score": instance.score, "points": join_rings(rings)}
            shape |= {"group_id": number if len(polygons) > 1 else None, "description": "", "shape_type": "polygon"}
            shapes.append({**shape, "flags": {"iscrowd": True} if instance.iscrowd else {}})
    height, width = image.size
    content: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes}
    content |= {"imagePath": relative_path(folder, image.path), "imageData": None}
    return content | {"imageHeight": height, "imageWidth": width}


def from_labelme(content: Mapping[str, Any], folder: Path | None = None) -> AnnotatedImage:
    """Return the image of a LabelMe file, whose path is relative to `folder`; shapes of one label and group are one instance.

    Raises:
        InvalidInputError: it is no LabelMe file, or has other shapes than polygons and rectangles.
        MissingExtraError: there is no OpenCV.
    """
    with readable("LabelMe file"):
        size = int(content["imageHeight"]), int(content["imageWidth"])
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for number, shape in enumerate(content["shapes"]):
            if shape["shape_type"] not in ("polygon", "rectangle"):
                raise InvalidInputError(f"a shape is a {shape['shape_type']}: give only polygons and rectangles.")
            group = shape.get("group_id")
            groups.setdefault((shape["label"], number if group is None else ("group", group)), []).append(shape)
        instances = []
        for (label, _), shapes in groups.items():
            mask = fill_polygons([[_corners(shape)] for shape in shapes], size)
            crowd = bool((shapes[0].get("flags") or {}).get("iscrowd"))
            instances.append(Instance(mask, score_of(shapes[0]), str(label), iscrowd=crowd))
        return AnnotatedImage(image_path(folder, content["imagePath"]), size, instances)


def _corners(shape: Mapping[str, Any]) -> list[Any]:
    if shape["shape_type"] == "polygon":
        return list(shape["points"])
    points = np.array(shape["points"], dtype=np.float64)  # two opposite corners from LabelMe, all four from X-AnyLabeling
    if points.shape not in ((2, 2), (4, 2)):
        raise ValueError(f"a rectangle of {len(points)} points")
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return [[left, top], [right, top], [right, bottom], [left, bottom]]
