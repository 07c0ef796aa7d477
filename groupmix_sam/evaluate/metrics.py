"""What is measured of a mask, and the points that are asked with. Masks are H x W of bool; points are x, y in pixels."""

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, MissingExtraError

try:
    from scipy.ndimage import distance_transform_cdt, distance_transform_edt
except ImportError as e:
    raise MissingExtraError.of("scipy", "eval") from e

__all__ = ["Mask", "boundary_iou", "filled_box", "innermost_pixel", "iou", "next_click", "random_pixel", "tight_box"]

Mask = NDArray[np.bool_]
# Cheng et al., "Boundary IoU" (arXiv 2103.16562): the boundary's width as a share of the picture's diagonal.
BOUNDARY_WIDTH = 0.02


def iou(a: Mask, b: Mask) -> float:
    """Return the intersection over the union, 0 if both masks are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def boundary(mask: Mask, width: int) -> Mask:
    """Return the mask's pixels within `width` pixels, chessboard distance, of its outside; the picture's border is outside."""
    out = np.zeros_like(mask)
    window = _window(mask)
    if window is not None:
        part = mask[window]
        distance = distance_transform_cdt(np.pad(part, 1), metric="chessboard")[1:-1, 1:-1]
        out[window] = part & (distance <= width)
    return out


def boundary_iou(a: Mask, b: Mask) -> float:
    """Return the IoU of the masks' boundaries, 2 % of the picture's diagonal wide (arXiv 2103.16562)."""
    width = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*a.shape))))
    return iou(boundary(a, width), boundary(b, width))


def filled_box(size: tuple[int, int], box: NDArray[np.float64]) -> Mask:
    """Return a box, left, top, right, bottom, as a mask of height and width `size`, one pixel at least."""
    mask = np.zeros(size, dtype=bool)
    left, top, right, bottom = np.round(box).astype(int)
    mask[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)] = True
    return mask


def tight_box(mask: Mask) -> NDArray[np.float64]:
    """Return left, top, right, bottom of a mask; zeros if it is empty."""
    window = _window(mask)
    if window is None:
        return np.zeros(4)
    rows, columns = window
    return np.array([columns.start, rows.start, columns.stop, rows.stop], dtype=np.float64)


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


def _window(mask: Mask) -> tuple[slice, slice] | None:
    """Return the rows and columns that hold all of the mask: distances inside it need nothing more of the picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _required_window(mask: Mask) -> tuple[slice, slice]:
    window = _window(mask)
    if window is None:
        raise InvalidInputError("a mask has no pixel to point at: leave such out by a least area of 1.")
    return window
