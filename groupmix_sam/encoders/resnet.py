"""ResNet as NanoSAM's image encoder

Papers:
    * `Deep Residual Learning for Image Recognition` - https://arxiv.org/abs/1512.03385

timm's ResNet18 with the neck of NanoSAM, https://github.com/NVIDIA-AI-IOT/nanosam, whose weights load through
`checkpoint_filter_fn`. A student of Group-Mix SAM's Table 2.
"""

# Copyright 2026 The groupmix-sam authors. Licensed under the Apache License, Version 2.0.

import re
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from .config import STRIDE, encoder_weights, sam_cfg
from .neck import NanoSamNeck
from .timm_mixin import SamEncoderMixin

__all__ = ["SamResNet"]


class SamResNet(SamEncoderMixin, ResNet):
    """NanoSAM's image encoder: B x 3 x H x W, RGB with SAM's mean and std taken off, to B x 256 x H/16 x W/16.

    Args:
        img_size: Side in pixels that `SamPredictor` resizes and pads to; other sizes resize the position embedding.
        num_classes: Number of classes of a linear classifier on the features, 0 for the features themselves.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        device: Where to put the parameters.
        dtype: What to make of them.
        **kwargs: timm's ResNet's.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 1024,
        num_classes: int = 0,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=0, **kwargs)
        self.global_pool = nn.Identity()  # ResNet's own head, replaced by SAM's
        self._make_sam(NanoSamNeck(self.num_features), img_size, num_classes, global_pool, drop_rate, device, dtype)

    def no_weight_decay(self) -> set[str]:
        return {"neck.pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        matcher = super().group_matcher(coarse)
        return matcher | {"neck": [(r"^neck", (99999,))]}

    def _through_neck(self, features: Tensor, x: Tensor) -> Tensor:
        return features if self.neck is None else self.neck(features, (x.shape[-2] // STRIDE, x.shape[-1] // STRIDE))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)


_NANOSAM_NAMES = (
    (r"^backbone\.", ""),
    (r"^up_1\.", "neck.up."),
    (r"^proj\.", "neck.proj."),
    (r"^pos_embedding$", "neck.pos_embed"),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Rename NanoSAM's weights; take the encoder out of a whole Sam's; leave ours as they are."""
    out = {}
    for key, value in encoder_weights(state_dict).items():
        for pattern, replacement in _NANOSAM_NAMES:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


default_cfgs = generate_default_cfgs({"sam_resnet18.untrained": sam_cfg(first_conv="conv1", classifier="head.fc")})


@register_model
def sam_resnet18(pretrained: bool = False, **kwargs: Any) -> SamResNet:
    """NanoSAM's image encoder, ResNet18."""
    model_args = {"block": BasicBlock, "layers": (2, 2, 2, 2)}
    return build_model_with_cfg(
        SamResNet,
        "sam_resnet18",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **dict(model_args, **kwargs),
    )
