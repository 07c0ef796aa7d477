"""What timm's own models need to be SAM encoders: a neck behind the last stage and a head on the neck's features."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .config import STRIDE, check_img_size, check_input
from .head import SamHead

__all__ = ["SamEncoderMixin"]


class SamEncoderMixin:
    """Goes before one of timm's models among the bases; its `__init__` calls `_make_sam` last."""

    neck: nn.Module | None
    head: Any
    num_classes: int

    def _make_sam(
        self,
        neck: nn.Module,
        img_size: int | tuple[int, int],
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.img_size = check_img_size(img_size)
        self.embed_stride = STRIDE
        self.neck = neck
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.head = SamHead(num_classes, global_pool, drop_rate)
        self.num_features = self.head_hidden_size = self.head.in_features
        cast(nn.Module, self).to(device, dtype)

    def _through_neck(self, features: Tensor, x: Tensor) -> Tensor:
        """Return the neck's output for the last stage's, of the input `x`."""
        return features if self.neck is None else self.neck(features)

    def get_classifier(self, **_: Any) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        self.neck = None
        return cast(Any, super()).prune_intermediate_layers(*args, **kwargs)

    def forward_intermediates(
        self, x: Tensor, *args: Any, stop_early: bool = False, intermediates_only: bool = False, **kwargs: Any
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the stages' outputs and, before them unless `intermediates_only`, the features; arguments as in timm."""
        if self.neck is not None:
            check_input(x)
        kwargs |= {"stop_early": stop_early and intermediates_only, "intermediates_only": intermediates_only}
        out = cast(Any, super()).forward_intermediates(x, *args, **kwargs)
        return (self._through_neck(out[0], x), out[1]) if isinstance(out, tuple) else out

    def forward_features(self, x: Tensor) -> Tensor:
        check_input(x)
        return self._through_neck(cast(Any, super()).forward_features(x), x)
