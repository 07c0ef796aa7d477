"""Index masks: images whose values are the numbers of instances."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InvalidInputError
from ..visualize import COLORS
from .types import AnnotatedImage, Instance

__all__ = ["from_mask", "to_mask"]


def to_mask(image: AnnotatedImage) -> Image.Image:
    """Return an image whose values are 0 for background and n for the n-th instance; smaller instances cover larger ones.

    With up to 255 instances it has 8 bits and a palette of the overlay's colours, with more 16 bits.
    """
    index = np.zeros(image.size, dtype=np.uint8 if len(image.instances) < 256 else np.uint16)
    for number, instance in sorted(enumerate(image.instances, 1), key=lambda pair: -pair[1].area):
        index[instance.window][instance.crop] = number
    out = Image.fromarray(index)
    if index.dtype == np.uint8:
        out.putpalette([0, 0, 0, *(value for i in range(255) for value in COLORS[i % len(COLORS)])])
    return out


def from_mask(image: Image.Image, path: Path) -> AnnotatedImage:
    """Return the image `path` with the instances that `to_mask` numbered, without the parts that others cover.

    Raises:
        InvalidInputError: the mask is no image of numbers.
    """
    index = np.asarray(image)
    if index.ndim != 2:
        raise InvalidInputError(f"the mask has shape {index.shape}: give an image of numbers, with a palette or in gray.")
    instances = [Instance(index == number) for number in np.unique(index) if number]
    return AnnotatedImage(path, (index.shape[0], index.shape[1]), instances)
