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

from .config import STRIDE, check_img_size, check_input, encoder_weights, sam_cfg
from .head import SamHead
from .neck import NanoSamNeck

__all__ = ["SamResNet"]


class SamResNet(ResNet):
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
        self.img_size = check_img_size(img_size)
        self.embed_stride = STRIDE
        self.neck: NanoSamNeck | None = NanoSamNeck(self.num_features)
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.global_pool = nn.Identity()  # ResNet's own head, replaced by the one below
        self.head = SamHead(num_classes, global_pool, drop_rate)
        self.num_features = self.head_hidden_size = self.head.in_features
        self.to(device, dtype)

    def no_weight_decay(self) -> set[str]:
        return {"neck.pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        matcher = super().group_matcher(coarse)
        return matcher | {"neck": [(r"^neck", (99999,))]}

    def get_classifier(self, **_: Any) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        self.neck = None
        return super().prune_intermediate_layers(*args, **kwargs)

    def forward_intermediates(
        self, x: Tensor, *args: Any, stop_early: bool = False, intermediates_only: bool = False, **kwargs: Any
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the stages' outputs and, before them unless `intermediates_only`, the features; arguments as in timm."""
        if self.neck is not None:
            check_input(x)
        kwargs |= {"stop_early": stop_early and intermediates_only, "intermediates_only": intermediates_only}
        out = super().forward_intermediates(x, *args, **kwargs)
        if isinstance(out, tuple) and self.neck is not None:
            return self.neck(out[0], (x.shape[-2] // STRIDE, x.shape[-1] // STRIDE)), out[1]
        return out

    def forward_features(self, x: Tensor) -> Tensor:
        check_input(x)
        grid = (x.shape[-2] // STRIDE, x.shape[-1] // STRIDE)
        x = super().forward_features(x)
        return x if self.neck is None else self.neck(x, grid)

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
