"""What every backend is: a model in some runtime, called with NumPy arrays in the model's order."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError

__all__ = ["Array", "Backend", "input_refused"]

Array = NDArray[np.float32]


class Backend(Protocol):
    """A model in a runtime; threads may share it."""

    def __call__(self, *inputs: Array) -> list[Array]:
        """Run the model.

        Raises:
            InvalidInputError: the model does not take inputs of these shapes.
        """


def input_refused(inputs: Sequence[Array], why: object) -> InvalidInputError:
    """Return the error for inputs that a model does not take."""
    shapes = ", ".join(str(x.shape) for x in inputs)
    return InvalidInputError(f"the model refuses inputs of {shapes} ({why}): export it for the sizes that you need.")
