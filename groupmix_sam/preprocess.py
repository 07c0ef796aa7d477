"""From an image to an encoder's input: the one resize, normalisation and padding, as `SamPredictor` does them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .encoders.config import SAM_MEAN, SAM_STD, STRIDE
from .errors import InvalidInputError

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "check_aspect", "input_size", "pad_and_normalize", "resize", "resized_size"]

# segment-anything's pixel_mean and pixel_std, RGB, of values from 0 to 255.
PIXEL_MEAN = 255 * np.array(SAM_MEAN, dtype=np.float32)
PIXEL_STD = 255 * np.array(SAM_STD, dtype=np.float32)


def resized_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Return the height and width of an image whose long side becomes `image_size`, rounded as segment-anything does."""
    scale = image_size / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def input_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Return the height and width of the smallest encoder's input for an image of a height and width: multiples of 16."""
    height, width = resized_size(size, image_size)
    return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE


def check_aspect(size: tuple[int, int], image_size: int, smallest: int = 1) -> None:
    """Raise InvalidInputError if an image's short side is under `smallest` pixels once the long one is `image_size`."""
    if min(resized_size(size, image_size)) < smallest:
        raise InvalidInputError(
            f"the image of {size[1]} x {size[0]} pixels is too narrow to be resized to {image_size}: cut it into parts."
        )


def resize(image: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Return an image, H x W x 3, with its long side at `image_size`, by Pillow's bilinear filter."""
    height, width = resized_size((image.shape[0], image.shape[1]), image_size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def pad_and_normalize(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    mean: NDArray[np.float32] = PIXEL_MEAN,
    std: NDArray[np.float32] = PIXEL_STD,
) -> NDArray[np.float32]:
    """Turn RGB pixels, H x W x 3, into an encoder's input, 3 x rows x columns, zero-padded at the bottom and the right."""
    out = np.zeros((3, *size), dtype=np.float32)
    inside = out[:, : pixels.shape[0], : pixels.shape[1]]
    np.subtract(pixels.transpose(2, 0, 1), mean[:, None, None], out=inside)
    inside /= std[:, None, None]
    return out
