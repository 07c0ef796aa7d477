"""What every backend is: a callable of NumPy arrays, in the model's order."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError

__all__ = ["Backend"]

Array = NDArray[np.float32]
Backend = Callable[..., list[Array]]


def input_refused(inputs: Sequence[Array], why: object) -> InvalidInputError:
    shapes = ", ".join(str(x.shape) for x in inputs)
    return InvalidInputError(f"the model refuses inputs of {shapes} ({why}): export it for the sizes that you need.")
