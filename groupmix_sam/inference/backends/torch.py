"""PyTorch as a backend."""

from collections.abc import Callable
from typing import Any

import torch

from .base import Array

__all__ = ["TorchBackend"]


class TorchBackend:
    """A PyTorch function of tensors, as it is on a device and in a dtype; fp32 arrays in and out."""

    def __init__(self, function: Callable[..., Any], device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.function = function
        self.device = device
        self.dtype = dtype

    @torch.inference_mode()
    def __call__(self, *inputs: Array) -> list[Array]:
        out = self.function(*(torch.from_numpy(x).to(self.device, self.dtype) for x in inputs))
        return [x.float().cpu().numpy() for x in ((out,) if isinstance(out, torch.Tensor) else out)]
