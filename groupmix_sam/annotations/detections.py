"""supervision's Detections."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import import_extra
from .types import AnnotatedImage, category_index, category_names

if TYPE_CHECKING:
    import supervision

__all__ = ["to_detections"]


def to_detections(image: AnnotatedImage, categories: Sequence[str] | None = None) -> "supervision.Detections":
    """Return an image's instances as supervision's Detections: xyxy, mask, confidence (the score), class_id and class_name.

    Args:
        image: With its instances.
        categories: Names, counted from 0; by default those that occur, sorted.

    Raises:
        MissingExtraError: supervision is not installed.
    """
    sv = import_extra("supervision", "supervision")
    if not image.instances:
        return sv.Detections.empty()
    names = categories or category_names([image])
    masks = np.stack(image.masks())  # which supervision needs at once: as many bytes as all pixels of all masks
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(masks).astype(np.float32),
        mask=masks,
        confidence=np.array([instance.score for instance in image.instances], dtype=np.float32),
        class_id=np.array([category_index(instance.category, names) for instance in image.instances]),
        data={
            "class_name": np.array([instance.category for instance in image.instances]),
            "iscrowd": np.array([int(instance.iscrowd) for instance in image.instances]),
        },
    )
