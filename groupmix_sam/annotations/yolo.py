"""YOLO segmentation labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..masks import TOLERANCE, fill_polygons, join_rings, to_polygons
from .types import AnnotatedImage, Instance, category_index, readable

__all__ = ["from_yolo", "to_yolo"]


def to_yolo(image: AnnotatedImage, categories: Sequence[str], tolerance: float = TOLERANCE) -> str:
    """Return an image's instances as YOLO segmentation labels: a line an instance, its category's index and a polygon.

    Points are x and y as shares of the image's sides. There is one polygon an instance: parts and holes are joined by
    cuts of no width.
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
    """Return the image `path`, of height and width `size`, that YOLO's text for segmentation is about."""
    height, width = size
    instances = []
    with readable("YOLO file"):
        for line in filter(str.strip, text.removeprefix("\ufeff").splitlines()):  # a byte-order mark of Windows' editors
            category, *numbers = line.split()
            points = np.array(numbers, dtype=np.float64).reshape(-1, 2) * (width, height)
            if len(points) < 3 or int(category) < 0:
                raise ValueError(f"{line!r} is no class with a polygon of three points or more")  # a box, of detection
            instances.append(Instance(fill_polygons([[points.tolist()]], size), 1.0, categories[int(category)]))
    return AnnotatedImage(path, size, instances)
