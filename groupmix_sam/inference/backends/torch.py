"""PyTorch as a backend."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["TorchBackend"]


class TorchBackend:
    """A PyTorch function of tensors, as it is on a device and in a dtype; fp32 in and out."""

    def __init__(self, function: Callable[..., Any], device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.function = function
        self.device = device
        self.dtype = dtype

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        out = self.function(*(x.to(self.device, self.dtype) for x in inputs))
        return [x.float() for x in ((out,) if isinstance(out, Tensor) else out)]
