"""LabelMe annotation files, which X-AnyLabeling reads too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..masks import TOLERANCE, _joined, decode_rle, encode_rle, fill_polygons, to_polygons
from .types import AnnotatedPicture, Thing, _from, _readable, _score

__all__ = ["from_labelme", "to_labelme"]


def to_labelme(picture: AnnotatedPicture, folder: Path | None = None, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return a picture's things as a LabelMe file in `folder` has them: a polygon a part; the parts of one thing share a group.

    A hole is joined to its outline by a cut of no width.
    """
    shapes = []
    for number, thing in enumerate(picture.things, 1):
        polygons = to_polygons(decode_rle(thing.mask), tolerance)
        for rings in polygons:
            shape: dict[str, Any] = {"label": thing.category, "score": thing.score, "points": _joined(rings)}
            shape |= {"group_id": number if len(polygons) > 1 else None, "description": "", "shape_type": "polygon"}
            shapes.append({**shape, "flags": {}})
    height, width = picture.size
    content: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes}
    content |= {"imagePath": _from(folder, picture.path), "imageData": None}
    return content | {"imageHeight": height, "imageWidth": width}


def from_labelme(content: Mapping[str, Any], folder: Path | None = None) -> AnnotatedPicture:
    """Return the picture of a LabelMe file in `folder`; shapes of one label and group are one thing.

    Raises:
        InvalidInputError: it is none, or has another shape than polygons and rectangles.
    """
    with _readable("LabelMe file"):
        size = int(content["imageHeight"]), int(content["imageWidth"])
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for number, shape in enumerate(content["shapes"]):
            if shape["shape_type"] not in ("polygon", "rectangle"):
                raise InvalidInputError(f"a shape is a {shape['shape_type']}: give polygons and rectangles alone.")
            group = shape.get("group_id")
            groups.setdefault((shape["label"], number if group is None else ("group", group)), []).append(shape)
        things = []
        for (label, _), shapes in groups.items():
            mask = fill_polygons([[_corners(shape)] for shape in shapes], size)
            things.append(Thing(encode_rle(mask), _score(shapes[0]), str(label)))
        path = content["imagePath"].replace("\\", "/")
        return AnnotatedPicture((folder or Path()) / path, size, things)


def _corners(shape: Mapping[str, Any]) -> list[Any]:
    if shape["shape_type"] == "polygon":
        return list(shape["points"])
    points = np.array(shape["points"], dtype=np.float64)  # LabelMe has two opposite corners, X-AnyLabeling all four
    if points.shape not in ((2, 2), (4, 2)):
        raise ValueError(f"a rectangle of {len(points)} points")
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return [[left, top], [right, top], [right, bottom], [left, bottom]]
