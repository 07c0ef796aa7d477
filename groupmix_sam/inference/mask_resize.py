"""Low-resolution logits resized to the image: in blocks that stay in a CPU's cache, or at once on a device."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Neighbours", "neighbours", "resize_blocks", "resize_mask", "resize_on_device"]

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
    height = max(1, BLOCK // max(1, len(columns.first)))
    for start in range(0, len(rows.first), height):
        block = slice(start, start + height)
        part = steps[rows.first[block]]
        part *= rows.share[block, None]
        part += wide[rows.first[block]]
        yield block, part


def resize_mask(
    low: NDArray[np.float32], rows: Neighbours, columns: Neighbours, threshold: float, out: NDArray[np.bool_]
) -> None:
    """Write to `out`, H x W, where h x w logits resized exceed a threshold; only around those that do is anything resized."""
    out[...] = False
    above = low > threshold
    if not above.any():
        return
    # Nothing between two that do not exceed it does.
    tall, wide = (_between(side, np.flatnonzero(above.any(axis=i))) for side, i in ((rows, 1), (columns, 0)))
    part = out[tall, wide]
    near = Neighbours(rows.first[tall], rows.share[tall]), Neighbours(columns.first[wide], columns.share[wide])
    for block, values in resize_blocks(low, *near):
        np.greater(values, threshold, out=part[block])


def _between(side: Neighbours, above: NDArray[np.intp]) -> slice:
    """Return which pixels have a neighbour from the first to the last of these in the source."""
    start, stop = np.searchsorted(side.first, (above[0] - 1, above[-1] + 1)).tolist()
    return slice(start, stop)


def resize_on_device(low: Tensor, size: Sequence[int], extents: Sequence[float]) -> Tensor:
    """Return what `resize_blocks` yields, H x W, for h x w logits on a device, where it is computed."""
    for axis in (1, 0):  # the short rows first
        source = low.shape[axis]
        middles = (torch.arange(size[axis], device=low.device) + 0.5) * (extents[axis] / size[axis]) - 0.5
        middles = middles.clamp(0, source - 1)
        first = middles.long().clamp(max=source - 2)
        share = (middles - first).unflatten(0, (-1, 1) if axis == 0 else (1, -1))
        low = torch.lerp(low.index_select(axis, first), low.index_select(axis, first + 1), share)
    return low
