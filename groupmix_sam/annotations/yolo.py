"""YOLO segmentation labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..masks import TOLERANCE, _joined, decode_rle, encode_rle, fill_polygons, to_polygons
from .types import AnnotatedPicture, Thing, _place, _readable

__all__ = ["from_yolo", "to_yolo"]


def to_yolo(picture: AnnotatedPicture, categories: Sequence[str], tolerance: float = TOLERANCE) -> str:
    """Return a picture's things as YOLO's text for segmentation has them: a line a thing, its category's place and a polygon.

    Points are x and y as shares of the picture's sides. There is one polygon a thing: parts and holes are joined by cuts of no
    width.
    """
    height, width = picture.size
    lines = []
    for thing in picture.things:
        rings = [ring for polygon in to_polygons(decode_rle(thing.mask), tolerance) for ring in polygon]
        if rings:
            numbers = (f"{x / width:.6f} {y / height:.6f}" for x, y in _joined(rings))
            lines.append(f"{_place(thing.category, categories)} {' '.join(numbers)}\n")
    return "".join(lines)


def from_yolo(text: str, path: Path, size: tuple[int, int], categories: Sequence[str]) -> AnnotatedPicture:
    """Return the picture `path`, of height and width `size`, that YOLO's text for segmentation is about."""
    height, width = size
    things = []
    with _readable("YOLO file"):
        for line in filter(str.strip, text.splitlines()):
            category, *numbers = line.split()
            points = np.array(numbers, dtype=np.float64).reshape(-1, 2) * (width, height)
            if len(points) < 3 or int(category) < 0:
                raise ValueError(f"{line!r} is no class with a polygon of three points or more")  # a box, of detection
            things.append(Thing(encode_rle(fill_polygons([[points.tolist()]], size)), 1.0, categories[int(category)]))
    return AnnotatedPicture(path, size, things)
