"""Contour files: polygons with holes, in JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..masks import TOLERANCE, decode_rle, encode_rle, fill_polygons, to_polygons
from .types import AnnotatedPicture, Thing, _from, _readable, _score

__all__ = ["from_contours", "to_contours"]


def to_contours(picture: AnnotatedPicture, folder: Path | None = None, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return a picture's things as polygons: of each a list, each with its outline first and then its holes'."""
    things = [
        {
            "category": thing.category,
            "score": thing.score,
            "polygons": to_polygons(decode_rle(thing.mask), tolerance),
            **({"prompt": thing.prompt} if thing.prompt else {}),
        }
        for thing in picture.things
    ]
    return {"picture": _from(folder, picture.path), "size": list(picture.size), "things": things}


def from_contours(content: Mapping[str, Any], folder: Path | None = None) -> AnnotatedPicture:
    """Return the picture of a file of contours in `folder`."""
    with _readable("file of contours"):
        height, width = map(int, content["size"])
        things = [
            Thing(
                encode_rle(fill_polygons(entry["polygons"], (height, width))),
                _score(entry),
                str(entry["category"]),
                entry.get("prompt"),
            )
            for entry in content["things"]
        ]
        return AnnotatedPicture((folder or Path()) / content["picture"], (height, width), things)
