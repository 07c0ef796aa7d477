"""Drawing masks and prompts on images."""

from collections.abc import Iterable
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .images import as_rgb
from .masks import Mask, check_mask, mask_window

__all__ = ["draw_masks"]

# Okabe and Ito's palette, which is readable with colour blindness.
COLORS = ((0, 158, 115), (230, 159, 0), (86, 180, 233), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178))


def draw_masks(
    image: NDArray[np.uint8],
    masks: Iterable[Mask],
    *,
    points: NDArray[np.float64] | None = None,
    labels: NDArray[np.int64] | None = None,
    box: NDArray[np.float64] | None = None,
) -> Image.Image:
    """Return the image with its masks, tinted and outlined, and with prompts.

    Args:
        image: H x W x 3, uint8, RGB, or what else `as_rgb` takes.
        masks: H x W of bool each.
        points: N x 2, x before y, in pixels.
        labels: N, 1 for foreground (green) and 0 for background (red); by default all foreground.
        box: x0, y0, x1, y1 in pixels, or N x 4 for several boxes.

    Raises:
        InvalidInputError: a mask is no array of bool of the image's size.
    """
    image = as_rgb(image)
    out = image.astype(np.float32)
    for mask, color in zip(masks, cycle(COLORS), strict=False):
        check_mask(mask, image.shape[:2])
        window = mask_window(mask)
        if window is not None:
            inside, part = mask[window], out[window]
            part[inside] = 0.5 * part[inside] + 0.5 * np.array(color)
            part[_outline(inside)] = color
    drawn = Image.fromarray(out.astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    width = max(2, round(max(drawn.size) / 400))
    if box is not None:
        for corners in np.reshape(box, (-1, 4)).tolist():
            draw.rectangle(corners, outline=(255, 255, 255), width=width)
    if points is not None:
        radius = 3 * width
        for (x, y), label in zip(points, np.ones(len(points)) if labels is None else labels, strict=True):
            fill = (40, 200, 40) if label else (220, 40, 40)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=(255, 255, 255), width=width)
    return drawn


def _outline(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
