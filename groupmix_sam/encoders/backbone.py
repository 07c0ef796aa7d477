"""Any timm backbone as a SAM encoder, by the name "timm/" and the backbone's own

Its feature maps at strides 8, 16 and 32, those that it has, are brought to stride 16, concatenated, and mapped to 256 channels
by one 1x1 convolution, as in Group-Mix SAM: a linear neck, which distillation starts by ridge regression.
"""

# Copyright 2026 The groupmix-sam authors. Licensed under the Apache License, Version 2.0.

from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidInputError, UnknownNameError
from .config import EMBED_DIM, STRIDE, check_embed_stride, check_img_size, check_input, encoder_weights, sam_cfg

__all__ = ["PREFIX", "LinearNeck", "SamBackbone"]

PREFIX = "timm/"


class SamBackbone(nn.Module):
    """A timm backbone and a linear neck: B x 3 x H x W, RGB with SAM's mean and std taken off, to B x 256 x H/s x W/s.

    Args:
        name: What timm calls the backbone.
        img_size: Side in pixels that `SamPredictor` resizes and pads to.
        embed_stride: Stride s of the features: 16, or 8, to which coarser maps are resized up.
    """

    def __init__(self, name: str, img_size: int = 1024, embed_stride: int = STRIDE) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise UnknownNameError.near("timm backbone", name, timm.list_models())
        self.img_size = check_img_size(img_size)
        self.embed_stride = check_embed_stride(embed_stride)
        self.num_classes = 0
        self.num_features = EMBED_DIM
        self.pretrained_cfg = sam_cfg(architecture=PREFIX + name)
        try:
            backbone = timm.create_model(name, features_only=True)
        except (RuntimeError, AttributeError, TypeError, AssertionError) as e:  # what timm raises for models without maps
            raise InvalidInputError(f"{name} gives no feature maps ({e}): choose one that timm makes features_only.") from e
        self.backbone = cast(Any, backbone)
        info = self.backbone.feature_info
        self.used = [i for i, stride in enumerate(info.reduction()) if STRIDE // 2 <= stride <= 2 * STRIDE]
        if not self.used:
            raise InvalidInputError(f"{name} has maps at strides {info.reduction()}, none at 8, 16 or 32: choose another.")
        self.feature_info = [
            {"num_chs": chs, "reduction": stride} for chs, stride in zip(info.channels(), info.reduction(), strict=True)
        ]
        self.neck = LinearNeck([info.channels()[i] for i in self.used])
        self._check_sizes(name)

    @torch.no_grad()
    def _check_sizes(self, name: str) -> None:
        """Raise InvalidInputError for a backbone that takes images of one size only, as many ViTs do."""
        side = min(self.img_size, 256)
        try:
            self.backbone.eval()(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError, ValueError) as e:
            raise InvalidInputError(f"{name} takes no image of {side} x {side} ({e}): choose one that takes any size.") from e
        self.backbone.train()

    def forward_intermediates(self, x: Tensor, indices: list[int] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the features and the backbone's maps before them, all or those asked for, as timm's models do."""
        check_input(x)
        maps = self.backbone(x)
        grid = (x.shape[-2] // self.embed_stride, x.shape[-1] // self.embed_stride)
        features = self.neck([maps[i] for i in self.used], grid)
        return features, list(maps) if indices is None else [maps[i] for i in indices]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_intermediates(x, [])[0]

    def no_weight_decay(self) -> set[str]:
        # timm wraps transformers whole, and takes other models apart, of which nothing is known.
        model: Any = getattr(self.backbone, "model", None)
        return {f"backbone.model.{name}" for name in model.no_weight_decay()} if hasattr(model, "no_weight_decay") else set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        backbone = getattr(self.backbone, "model", self.backbone)  # of transformers timm wraps the whole
        backbone.set_grad_checkpointing(enable)


class LinearNeck(nn.Module):
    """Maps of several strides resized to one grid, concatenated, one 1x1 convolution without bias."""

    def __init__(self, chs: list[int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(sum(chs), EMBED_DIM, kernel_size=1, bias=False)

    def forward(self, maps: list[Tensor], grid: tuple[int, int]) -> Tensor:
        resized = [
            F.adaptive_avg_pool2d(m, grid) if m.shape[-2] >= grid[0] else F.interpolate(m, grid, mode="bilinear") for m in maps
        ]
        return self.proj(torch.cat(resized, dim=1))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Take the encoder out of a whole Sam's weights."""
    return encoder_weights(state_dict)
