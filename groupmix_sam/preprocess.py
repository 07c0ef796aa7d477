"""From an image to an encoder's input: the one resize, normalisation and padding, as `SamPredictor` does them."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .encoders.config import SAM_MEAN, SAM_STD, STRIDE
from .errors import InvalidInputError

__all__ = ["check_aspect", "pad_and_normalize"]


def check_aspect(size: tuple[int, int], image_size: int) -> None:
    """Raise InvalidInputError if an image's short side, height or width, vanishes when the long one becomes `image_size`."""
    if int(min(size) * image_size / max(size) + 0.5) < 1:
        raise InvalidInputError(
            f"the image of {size[1]} x {size[0]} pixels is too narrow to be resized to {image_size}: cut it into parts."
        )


def resize(image: NDArray[np.uint8], image_size: int) -> Tensor:
    """Return an image, H x W x 3, with its long side at `image_size`, resized as `SamPredictor` does.

    Raises:
        InvalidInputError: the short side would be less than 16 pixels.
    """
    scale = image_size / max(image.shape[:2])
    height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    if min(height, width) < STRIDE:
        raise InvalidInputError(f"an image of {width} x {height} pixels, resized, is too narrow: cut it into parts.")
    return torch.from_numpy(np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)))


def normalize(images: Tensor) -> Tensor:
    """Turn uint8 RGB, B x H x W x 3, into an encoder's input, B x 3 x H x W."""
    mean = torch.tensor(SAM_MEAN) * 255
    std = torch.tensor(SAM_STD) * 255
    return ((images - mean) / std).permute(0, 3, 1, 2)


def pad_and_normalize(image: Tensor, size: int) -> Tensor:
    """Turn uint8 RGB, H x W x 3, into an encoder's input, 1 x 3 x S x S, padded at the bottom and the right."""
    out = torch.zeros(1, 3, size, size)
    out[:, :, : image.shape[0], : image.shape[1]] = normalize(image[None])
    return out
