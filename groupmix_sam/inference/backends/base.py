"""What every backend is: a model in some runtime, called with tensors in the model's order."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...errors import InvalidInputError

__all__ = ["CHANNELS", "Backend", "Positions", "cut_positions", "input_refused"]

# What the cells' positions add, with the axis of the cells, which is split in rows and columns.
Positions = list[tuple[int, Tensor]]
# Sides of the decoder's tensors, its channels for the most part, which are told from no number of cells.
CHANNELS = (4, 8, 16, 32, 64, 128, 256)


class Backend(Protocol):
    """A model in a runtime; threads may share it.

    Attributes:
        device: Where it leaves its results. What is there already is not copied when it is an input.
    """

    device: torch.device

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run the model: fp32 in, from any device, and fp32 out.

        Raises:
            InvalidInputError: the model does not take inputs of these shapes.
        """


def input_refused(inputs: Sequence[Tensor], why: object) -> InvalidInputError:
    """Return the error for inputs that a model does not take."""
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    return InvalidInputError(f"the model refuses inputs of {shapes} ({why}): export it for the sizes that you need.")


def cut_positions(
    part: Callable[..., list[Tensor]], positions: Positions, rows: slice, columns: slice
) -> Callable[..., list[Tensor]]:
    """Return what takes the cells of these rows and columns of the grid, from what takes any and what their positions add."""
    here = [
        whole.narrow(axis, rows.start, rows.stop - rows.start)
        .narrow(axis + 1, columns.start, columns.stop - columns.start)
        .flatten(axis, axis + 1)
        for axis, whole in positions
    ]
    return lambda *inputs: part(*inputs, *here)
