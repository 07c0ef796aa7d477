"""Contour files: polygons with holes, in JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..masks import TOLERANCE, fill_polygons, to_polygons
from .types import AnnotatedImage, Instance, prompt_of, prompt_record, readable, relative_path, score_of

__all__ = ["from_contours", "to_contours"]


def to_contours(image: AnnotatedImage, folder: Path | None = None, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return an image and its instances as the content of a file of contours.

    Args:
        image: With its instances, each of which becomes a list of polygons: an outline and its holes.
        folder: Where the file will lie; by default the working directory.
        tolerance: See `to_polygons`.

    Raises:
        MissingExtraError: there is no OpenCV.
    """
    instances = [
        {
            "category": instance.category,
            "score": instance.score,
            "polygons": to_polygons(instance.mask, tolerance),
            **prompt_record(instance),
            **({"iscrowd": True} if instance.iscrowd else {}),
        }
        for instance in image.instances
    ]
    return {"image": relative_path(folder, image.path), "size": list(image.size), "instances": instances}


def from_contours(content: Mapping[str, Any], folder: Path | None = None) -> AnnotatedImage:
    """Return the image of a file of contours, whose path is relative to `folder`, by default the working directory.

    Raises:
        InvalidInputError: it is no file of contours.
    """
    with readable("file of contours"):
        height, width = map(int, content["size"])
        instances = [
            Instance(
                fill_polygons(entry["polygons"], (height, width)),
                score_of(entry),
                str(entry["category"]),
                prompt_of(entry),
                bool(entry.get("iscrowd")),
            )
            for entry in content["instances"]
        ]
        return AnnotatedImage((folder or Path()) / content["image"], (height, width), instances)
