"""What a server answers with: instances as JSON, with run lengths or polygons, or as PNG."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ..annotations.index_mask import to_mask
from ..annotations.types import AnnotatedImage, Instance
from ..masks import encode_rle, to_polygons

__all__ = ["Format", "Rendered", "render"]

Format = Literal["rle", "polygons", "png", "labels"]


class Rendered(NamedTuple):
    """An answer's body, its media type and its own headers."""

    body: bytes
    media_type: str
    headers: dict[str, str]


def render(instances: Sequence[Instance], size: tuple[int, int], form: Format, tolerance: float) -> Rendered:
    """Return instances in a format.

    Args:
        instances: All of one image.
        size: The image's height and width.
        form: "rle" and "polygons" are JSON; "png" is the union of the masks, 255 inside and 0 outside; "labels" is what
            `to_mask` makes, n for the n-th instance.
        tolerance: Of polygons, in pixels.

    Raises:
        MissingExtraError: polygons are wanted, and there is no OpenCV.
    """
    if form in ("png", "labels"):
        image = _union(instances, size) if form == "png" else to_mask(AnnotatedImage(Path(), size, [*instances]))
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)  # ten times as fast as by default, for masks of much the same size
        return Rendered(file.getvalue(), "image/png", {"x-scores": ",".join(f"{one.score:.4f}" for one in instances)})
    found = [
        {"score": one.score, "category": one.category, "box": one.box, "area": one.area, form: _shape(one, form, tolerance)}
        for one in instances
    ]
    body = json.dumps({"width": size[1], "height": size[0], "instances": found}, separators=(",", ":"))
    return Rendered(body.encode(), "application/json", {})


def _shape(instance: Instance, form: Format, tolerance: float) -> Any:
    return encode_rle(instance.mask) if form == "rle" else to_polygons(instance.mask, tolerance)


def _union(instances: Sequence[Instance], size: tuple[int, int]) -> Image.Image:
    union = np.zeros(size, dtype=np.uint8)
    for instance in instances:
        union[instance.window][instance.crop] = 255
    return Image.fromarray(union)
