"""What every backend is: a model in some runtime, called with tensors in the model's order."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...errors import InvalidInputError

__all__ = ["MOST_WINDOWS", "Backend", "input_refused"]

# Sizes of windows that an export's encoder is kept loaded for, those used last: each takes some 100 MB.
MOST_WINDOWS = 6


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
