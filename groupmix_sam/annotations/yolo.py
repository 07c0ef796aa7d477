"""YOLO segmentation labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..masks import TOLERANCE, fill_polygons, join_rings, to_polygons
from .types import AnnotatedImage, Instance, category_index, readable

__all__ = ["from_yolo", "to_yolo"]


def to_yolo(image: AnnotatedImage, categories: Sequence[str], tolerance: float = TOLERANCE) -> str:
    """Return an image's instances as YOLO segmentation labels: a line per instance, its class and a polygon.

    Points are x and y, from 0 to 1. An instance has one polygon: its parts and holes are joined by cuts of no width. Empty
    masks are left out.

    Args:
        image: With its instances.
        categories: The names of the classes, counted from 0.
        tolerance: See `to_polygons`.

    Raises:
        UnknownNameError: a category is not among the classes.
        MissingExtraError: there is no OpenCV.
    """
    height, width = image.size
    lines = []
    for instance in image.instances:
        rings = [ring for polygon in to_polygons(instance.mask, tolerance) for ring in polygon]
        if rings:
            numbers = (f"{x / width:.6f} {y / height:.6f}" for x, y in join_rings(rings))
            lines.append(f"{category_index(instance.category, categories)} {' '.join(numbers)}\n")
    return "".join(lines)


def from_yolo(text: str, path: Path, size: tuple[int, int], categories: Sequence[str]) -> AnnotatedImage:
    """Return the image `path`, of height and width `size`, with the instances of YOLO segmentation labels.

    Args:
        text: The content of the label file.
        path: The image.
        size: Its height and width in pixels.
        categories: The names of the classes, counted from 0.

    Raises:
        InvalidInputError: the text holds no segmentation labels.
        MissingExtraError: there is no OpenCV.
    """
    height, width = size
    instances = []
    with readable("YOLO file"):
        for line in filter(str.strip, text.removeprefix("\ufeff").splitlines()):  # a byte-order mark of Windows' editors
            category, *numbers = line.split()
            points = np.array(numbers, dtype=np.float64).reshape(-1, 2) * (width, height)
            if len(points) < 3 or int(category) < 0:
                raise ValueError(f"{line!r} has no class and polygon of three points or more")  # but a box, for detection
            instances.append(Instance(fill_polygons([[points.tolist()]], size), 1.0, categories[int(category)]))
    return AnnotatedImage(path, size, instances)
