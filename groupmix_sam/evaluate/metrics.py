"""Measures of masks, and the points of prompts. Masks are H x W of bool, points x, y in pixels."""

import numpy as np

from ..errors import InvalidInputError, MissingExtraError
from ..masks import Mask, mask_iou, mask_window

try:
    from scipy.ndimage import distance_transform_cdt, distance_transform_edt
except ImportError as e:
    raise MissingExtraError.of("scipy", "eval") from e

__all__ = ["boundary_iou", "innermost_pixel", "next_click", "random_pixel"]

# Cheng et al., "Boundary IoU" (arXiv 2103.16562): the boundary's width as a share of the image's diagonal.
BOUNDARY_WIDTH = 0.02


def boundary(mask: Mask, width: int) -> Mask:
    """Return the mask's pixels within `width` pixels, chessboard distance, of its outside; the image's border is outside."""
    out = np.zeros_like(mask)
    window = mask_window(mask)
    if window is not None:
        part = mask[window]
        distance = distance_transform_cdt(np.pad(part, 1), metric="chessboard")[1:-1, 1:-1]
        out[window] = part & (distance <= width)
    return out


def boundary_iou(a: Mask, b: Mask) -> float:
    """Return the IoU of the masks' boundaries, 2 % of the image's diagonal wide (arXiv 2103.16562)."""
    width = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*a.shape))))
    return mask_iou(boundary(a, width), boundary(b, width))


def innermost_pixel(mask: Mask) -> tuple[int, int]:
    """Return x and y of a pixel that is farthest from the mask's outside, by chessboard distance; the middle one of several."""
    window = _required_window(mask)
    distance = distance_transform_cdt(np.pad(mask[window], 1), metric="chessboard")[1:-1, 1:-1]
    ys, xs = np.nonzero(distance == distance.max())
    middle = len(xs) // 2
    return int(xs[middle]) + window[1].start, int(ys[middle]) + window[0].start


def random_pixel(mask: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Return x and y of one of the mask's pixels, all equally likely."""
    _required_window(mask)
    ys, xs = np.nonzero(mask)
    i = int(rng.integers(len(xs)))
    return int(xs[i]), int(ys[i])


def next_click(truth: Mask, mask: Mask, clicked: list[tuple[int, int]]) -> tuple[int, int, int] | None:
    """Return x, y and label of the click that corrects a mask, as RITM (arXiv 2102.06583) and its forerunners simulate it.

    It is the pixel farthest, by Euclidean distance, from the outside of what is missed (label 1) or of what is too much
    (label 0), whichever is deeper, and was not clicked before. None if there is none left.
    """
    depths = []
    for error in (mask & ~truth, truth & ~mask):
        depth = distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1]
        for x, y in clicked:
            depth[y, x] = 0
        depths.append(depth)
    label = int(depths[1].max() > depths[0].max())
    depth = depths[label]
    if not depth.max():
        return None
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y), label


def _required_window(mask: Mask) -> tuple[slice, slice]:
    window = mask_window(mask)
    if window is None:
        raise InvalidInputError("a mask has no pixel to click on: leave such masks out with min_mask_area 1.")
    return window
