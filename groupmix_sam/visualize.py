"""Drawing masks and prompts over an image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .errors import InvalidInputError
from .images import as_rgb

__all__ = ["draw_masks"]

# Okabe and Ito's colours, which people with colour blindness can tell apart.
COLORS = ((0, 158, 115), (230, 159, 0), (86, 180, 233), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178))


def draw_masks(
    image: NDArray[np.uint8],
    masks: Sequence[NDArray[np.bool_]],
    *,
    points: NDArray[np.float64] | None = None,
    labels: NDArray[np.int64] | None = None,
    box: NDArray[np.float64] | None = None,
) -> Image.Image:
    """Return the image with its masks tinted and outlined, and the prompts drawn.

    Args:
        image: What `as_rgb` takes.
        masks: H x W each, of bool.
        points: N x 2, in pixels, x before y.
        labels: N, 1 for foreground (green) and 0 for background (red).
        box: Left, top, right, bottom in pixels; or several, N x 4.
    """
    image = as_rgb(image)
    for mask in masks:
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != image.shape[:2]:
            what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise InvalidInputError(f"a mask is {what}: give bool arrays of the image's {image.shape[:2]}.")
    out = image.astype(np.float32)
    for mask, color in zip(masks, COLORS * (len(masks) // len(COLORS) + 1), strict=False):
        out[mask] = 0.5 * out[mask] + 0.5 * np.array(color)
        out[_outline(mask)] = color
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


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
