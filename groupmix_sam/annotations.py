"""Masks as annotation tools and other libraries keep them."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError

__all__ = ["Rle", "decode_rle", "encode_rle"]

Mask = NDArray[np.bool_]
# Larger pictures are a fault in a file, and would take all memory.
MOST_PIXELS = 2**31


class Rle(TypedDict):
    """A mask as COCO has it: height and width, and run lengths, column by column, compressed into a string."""

    size: list[int]
    counts: str


def encode_rle(mask: Mask) -> Rle:
    """Return a mask, H x W of bool, as COCO's compressed RLE; byte for byte what pycocotools writes."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InvalidInputError(f"the mask is {what}: give an H x W array of bool.")
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat.size and flat[0] else [0]  # the runs begin with one of background, which may be empty
    counts = [stop - start for start, stop in pairwise([*first, *changes.tolist(), flat.size])]
    return {"size": [int(side) for side in mask.shape], "counts": _compress(counts)}


def decode_rle(rle: Mapping[str, Any]) -> Mask:
    """Return COCO's RLE, compressed or as a list of run lengths, as a mask, H x W of bool.

    Raises:
        InvalidInputError: it is no RLE, or its runs are not the size's.
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


def _compress(counts: list[int]) -> str:
    """Return run lengths as COCO's string: from the fourth on less the one before the last, five bits a character."""
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
