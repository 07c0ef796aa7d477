"""What every backend is: a model in some runtime, called with tensors in the model's order."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import InvalidInputError

__all__ = ["CHANNELS", "AnySize", "Backend", "Positions", "cell_terms", "input_refused"]

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


class AnySize:
    """An exported file that is loaded once more for other sizes than it was exported for, when that is first asked for.

    Args:
        load: Loads the file again, changed by a function.
        any_window: Makes of an encoder one for images of any height and width.
        any_part: Makes of `image`, `masks` or `decoder` one for any part of the grid. It takes what its cells' positions add as
            further inputs, and puts them into the list that is given.
    """

    def __init__(
        self,
        load: Callable[[Callable[[Any], None]], Backend],
        any_window: Callable[[Any], None],
        any_part: Callable[[Any, Positions], None],
    ) -> None:
        self._load, self._free_window, self._free_part = load, any_window, any_part

    @cached_property
    def windows(self) -> Backend:
        """The encoder for windows of all sizes, multiples of 16."""
        return self._load(self._free_window)

    @cached_property
    def _any_part(self) -> tuple[Backend, Positions]:
        positions: Positions = []
        return self._load(lambda model: self._free_part(model, positions)), positions

    def for_part(self, rows: slice, columns: slice) -> Callable[..., list[Tensor]]:
        """Return `image`, `masks` or `decoder` for these rows and columns of the grid alone."""
        part, positions = self._any_part
        here = [
            whole.narrow(axis, rows.start, rows.stop - rows.start)
            .narrow(axis + 1, columns.start, columns.stop - columns.start)
            .flatten(axis, axis + 1)
            for axis, whole in positions
        ]
        return lambda *inputs: part(*inputs, *here)


def cell_terms(shape: list[int], rows: int, columns: int) -> list[list[int]] | None:
    """Return how a constant shape of a grid's model depends on the grid; None if it does not.

    For each of its sides that is a number, and how many to add for each row, column and cell.
    """
    cells = rows * columns
    of_side = {cells: [0, 0, 0, 1], 16 * cells: [0, 0, 0, 16]}
    sides = [of_side.get(side, [side, 0, 0, 0]) for side in shape]
    if len(shape) == 8 and shape[2:4] == [rows, columns]:
        sides[2:4] = [0, 1, 0, 0], [0, 0, 1, 0]
    elif shape == [-1, 4, 4 * rows, 4 * columns]:
        sides[2:4] = [0, 4, 0, 0], [0, 0, 4, 0]
    return sides if any(any(side[1:]) for side in sides) else None
