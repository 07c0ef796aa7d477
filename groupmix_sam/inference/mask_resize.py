"""Low-resolution logits resized to the image, in blocks that stay in the cache."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Neighbours", "neighbours", "resize_blocks"]

# Pixels of a mask that are resized at a time: 256 KB of logits.
BLOCK = 1 << 16


class Neighbours(NamedTuple):
    """For each of the pixels that a side is resized to, the first of its two in the source, and the share of the second."""

    first: NDArray[np.int64]
    share: NDArray[np.float32]


def neighbours(size: int, source: int, extent: float) -> Neighbours:
    """Return those by which the first `extent` pixels of `source` are resized to `size`, bilinearly."""
    middles = np.clip((np.arange(size) + 0.5) * extent / size - 0.5, 0, source - 1)
    first = np.minimum(middles.astype(np.int64), source - 2)
    return Neighbours(first, (middles - first).astype(np.float32))


def resize_blocks(
    low: NDArray[np.float32], rows: Neighbours, columns: Neighbours
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield h x w logits resized, in blocks of rows that stay in the cache.

    Not as matrix products, though they would do: NumPy's threads spin for a while after one, on the cores that the next
    image's encoder needs.
    """
    turned = np.ascontiguousarray(low.T)
    wide = turned[columns.first]
    wide += columns.share[:, None] * (turned[columns.first + 1] - wide)
    wide = np.ascontiguousarray(wide.T)
    steps = np.diff(wide, axis=0)
    height = max(1, BLOCK // len(columns.first))
    for start in range(0, len(rows.first), height):
        block = slice(start, start + height)
        part = steps[rows.first[block]]
        part *= rows.share[block, None]
        part += wide[rows.first[block]]
        yield block, part
