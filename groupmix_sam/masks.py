"""Masks, H x W of bool: COCO's run lengths, polygons, boxes and IoU."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError, import_extra

__all__ = [
    "Mask",
    "Polygon",
    "Rle",
    "box_baseline",
    "check_mask",
    "decode_rle",
    "decode_segmentation",
    "encode_rle",
    "fill_polygons",
    "mask_iou",
    "tight_box",
    "to_polygons",
]

Mask = NDArray[np.bool_]
# An outline and its holes, each a ring of points x, y in pixels.
Polygon = list[list[list[int]]]
# Pixels: polygons then have few enough points to be edited by hand.
TOLERANCE = 1.0
# A larger image in a file is an error, and would take all memory.
MOST_PIXELS = 2**31


class Rle(TypedDict):
    """COCO's compressed RLE: height and width, and the run lengths, column by column, as a string."""

    size: list[int]
    counts: str


def to_polygons(mask: Mask, tolerance: float = TOLERANCE) -> list[Polygon]:
    """Return the parts of a mask as polygons, each an outline and its holes; `fill_polygons` is the inverse for tolerance 0.

    Args:
        mask: H x W of bool.
        tolerance: Pixels that polygons may deviate from the outline. More gives fewer points. Parts and holes that are no wider
            vanish, except for the largest part.

    Raises:
        MissingExtraError: there is no OpenCV.
    """
    cv2 = import_extra("cv2", "stream")
    found, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [i for i in range(len(found)) if tree[0, i, 3] < 0]
    largest = max(outlines, key=lambda i: cv2.contourArea(found[i]), default=None)
    parts: dict[int, Polygon] = {}
    for i in sorted(range(len(found)), key=lambda i: tree[0, i, 3] >= 0):  # outlines before holes
        ring = cv2.approxPolyDP(found[i], tolerance, True)[:, 0].tolist()
        if len(ring) < 3:
            if tolerance > 0 and i != largest:
                continue
            ring += [ring[-1]] * (3 - len(ring))  # most tools refuse a polygon of fewer than three points
        outline = int(tree[0, i, 3])
        if outline < 0:
            parts[i] = [ring]
        elif outline in parts:
            parts[outline].append(ring)
    return list(parts.values())


def fill_polygons(polygons: Iterable[Sequence[Any]], size: tuple[int, int]) -> Mask:
    """Return the mask, of height and width `size`, that polygons cover; their points are rounded to pixels, which are covered.

    Args:
        polygons: Each an outline and its holes, rings of x, y in pixels.
        size: Height and width in pixels.

    Raises:
        MissingExtraError: there is no OpenCV.
    """
    cv2 = import_extra("cv2", "stream")
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise InvalidInputError(f"the image has {size[1]} x {size[0]} pixels: give its width and height.")
    mask = np.zeros(size, dtype=np.uint8)
    for rings in polygons:
        cv2.fillPoly(mask, [_ring(ring) for ring in rings], 1)
    return mask.astype(bool)


def check_mask(mask: object, size: tuple[int, ...] | None = None) -> None:
    """Raise InvalidInputError unless the mask is an array of bool, H x W, of height and width `size` if given."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2 or size not in (None, mask.shape):
        what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InvalidInputError(f"a mask is {what}: give an array of bool, {size or 'H x W'}.")


def encode_rle(mask: Mask) -> Rle:
    """Return a mask, H x W of bool, as COCO's compressed RLE, the same string as pycocotools'."""
    check_mask(mask)
    columns = np.flatnonzero(mask.any(0))
    used = slice(columns[0], columns[-1] + 1) if len(columns) else slice(0, 0)
    flat = mask[:, used].ravel(order="F")  # the copy is what takes long
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False)) + used.start * mask.shape[0]
    bounds = [0, *edges.tolist(), mask.size]
    if len(bounds) > 2 and bounds[-2] == mask.size:  # no background after the mask
        del bounds[-1]
    counts = [stop - start for start, stop in pairwise(bounds)]
    return {"size": [int(side) for side in mask.shape], "counts": _compress(counts)}


def decode_rle(rle: Mapping[str, Any]) -> Mask:
    """Return the mask, H x W of bool, of COCO's RLE, compressed or a list of run lengths.

    Raises:
        InvalidInputError: it is no RLE, or its runs do not add up to its size.
    """
    try:
        (height, width), counts = map(int, rle["size"]), rle["counts"]
        runs = _decompress(counts) if isinstance(counts, (str, bytes)) else [int(count) for count in counts]
        if min(height, width, *runs) < 0 or sum(runs) != height * width or sum(runs) > MOST_PIXELS:
            raise ValueError(f"runs of {sum(runs)} pixels for {width} x {height}")
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise InvalidInputError(f"a mask is no RLE ({e!r}): give COCO's size and counts.") from e
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> Mask:
    """Return a COCO annotation's `segmentation`, RLE or polygons, as the mask that pycocotools makes of it.

    COCO's polygons run along the edges of pixels: one around 20 x 20 pixels covers 400. `fill_polygons` fills those of other
    formats, which run through the middles of the outermost pixels.

    Args:
        segmentation: RLE; or polygons, each a list of x, y, x, y ..., whose union is the mask.
        size: The image's height and width.

    Raises:
        InvalidInputError: it is neither, or RLE of another size.
        MissingExtraError: it is polygons, and pycocotools is not installed.
    """
    if isinstance(segmentation, Mapping):
        mask = decode_rle(segmentation)
        if mask.shape != size:
            (height, width), (rows, columns) = size, mask.shape
            raise InvalidInputError(f"its mask is {columns} x {rows}, the image {width} x {height}: check where it comes from.")
        return mask
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise InvalidInputError(f"the image has {size[1]} x {size[0]} pixels: give its width and height.")
    polygons = [np.array(polygon, dtype=np.float64) for polygon in segmentation]
    for polygon in polygons:
        if polygon.ndim != 1 or polygon.size < 4 or polygon.size % 2:
            raise InvalidInputError(f"a polygon is {polygon.tolist()!r:.80}: give x, y, x, y ... in pixels.")
        # pycocotools allocates memory for the whole outline, also far outside, and crashes on numbers that are not finite.
        if not (np.isfinite(polygon).all() and (np.abs(polygon) <= 2 * max(size)).all()):
            raise InvalidInputError(f"a polygon reaches far out of the image of {size[1]} x {size[0]} pixels: give pixels.")
    if not polygons:
        raise InvalidInputError("there is no polygon: give one or more.")
    coco_mask = import_extra("pycocotools.mask", "coco")
    # Four numbers are two points, which enclose nothing; pycocotools would take them for a box.
    closed = [[*polygon, *polygon[:2]] if polygon.size == 4 else polygon.tolist() for polygon in polygons]
    rle = coco_mask.merge(coco_mask.frPyObjects(closed, *size))
    return decode_rle(rle)


def join_rings(rings: Polygon) -> list[list[int]]:
    """Return one ring through all rings, which are joined by cuts of no width between nearest points."""
    path = np.array(rings[0])
    for ring in map(np.array, rings[1:]):
        distances = ((path[:, None] - ring[None]) ** 2).sum(2)
        at, start = divmod(int(distances.argmin()), len(ring))
        turned = np.roll(ring, -start, axis=0)
        path = np.concatenate([path[: at + 1], turned, turned[:1], path[at:]])
    return path.tolist()


def _ring(points: Any) -> NDArray[np.int32]:
    """Return N x 2 points, rounded, in OpenCV's form."""
    ring = np.array(points, dtype=np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or not (np.abs(ring) < 1e6).all():
        raise InvalidInputError(f"a polygon is {points!r:.80}: give pairs of x and y in pixels.")
    return np.round(ring).astype(np.int32)[:, None]


def _compress(counts: list[int]) -> str:
    """Return run lengths as COCO's string: five bits a character; from the fourth on, differences to the last but one."""
    out = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            out.append((bits | 0x20 if more else bits) + 48)
    return out.decode("ascii")


def _decompress(text: str | bytes) -> list[int]:
    codes = [code - 48 for code in (text.encode("ascii") if isinstance(text, str) else text)]
    if any(not 0 <= code < 64 for code in codes) or (codes and codes[-1] & 0x20):
        raise ValueError(f"{text!r}")
    counts: list[int] = []
    value = shift = 0
    for code in codes:
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts


def mask_iou(a: Mask, b: Mask) -> float:
    """Return the intersection over union of two masks, H x W of bool; 1 for two empty ones, which are the same."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def box_baseline(size: tuple[int, int], box: NDArray[np.float64]) -> Mask:
    """Return a box, x0, y0, x1, y1, as a mask of height and width `size`: one pixel at least, none of a box outside."""
    mask = np.zeros(size, dtype=bool)
    x0, y0, x1, y1 = np.round(box).astype(int).tolist()
    mask[max(y0, 0) : max(y1, y0 + 1, 0), max(x0, 0) : max(x1, x0 + 1, 0)] = True  # a stop under 0 would count from the end
    return mask


def tight_box(mask: Mask) -> NDArray[np.float64]:
    """Return the bounding box of a mask, x0, y0, x1, y1 in pixels; zeros if it is empty."""
    window = mask_window(mask)
    if window is None:
        return np.zeros(4)
    rows, columns = window
    return np.array([columns.start, rows.start, columns.stop, rows.stop], dtype=np.float64)


def mask_window(mask: Mask) -> tuple[slice, slice] | None:
    """Return the rows and columns of a mask's bounding box; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
