"""supervision's Detections."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import import_extra
from .types import AnnotatedPicture, _categories, _place

if TYPE_CHECKING:
    import supervision

__all__ = ["to_detections"]


def to_detections(picture: AnnotatedPicture, categories: Sequence[str] | None = None) -> "supervision.Detections":
    """Return a picture's things for supervision: boxes, masks, scores as confidence, categories as class_id and class_name.

    Args:
        picture: With its things.
        categories: Names, counted from 0; by default those that occur, sorted.

    Raises:
        MissingExtraError: there is no supervision.
    """
    sv = import_extra("supervision", "supervision")
    if not picture.things:
        return sv.Detections.empty()
    names = categories or _categories([picture])
    masks = np.stack(picture.masks())
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(masks).astype(np.float32),
        mask=masks,
        confidence=np.array([thing.score for thing in picture.things], dtype=np.float32),
        class_id=np.array([_place(thing.category, names) for thing in picture.things]),
        data={"class_name": np.array([thing.category for thing in picture.things])},
    )
