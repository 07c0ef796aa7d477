"""TinyViT as MobileSAM's image encoder

Papers:
    * `TinyViT: Fast Pretraining Distillation for Small Vision Transformers` - https://arxiv.org/abs/2207.10666
    * `Faster Segment Anything: Towards Lightweight SAM for Mobile Applications` - https://arxiv.org/abs/2306.14289

timm's TinyViT with the last stage at stride 16 and SAM's neck; MobileSAM's own weights, https://github.com/ChaoningZhang/MobileSAM,
load through `checkpoint_filter_fn`. It is the teacher of Group-Mix SAM, and a student of the paper's Table 2.
"""

# Copyright 2026 The groupmix-sam authors. Licensed under the Apache License, Version 2.0.

import re
from typing import Any, cast

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from .config import STRIDE, encoder_weights, sam_cfg
from .neck import SamNeck
from .timm_mixin import SamEncoderMixin

__all__ = ["SamTinyVit"]


class SamTinyVit(SamEncoderMixin, TinyVit):
    """MobileSAM's image encoder: B x 3 x H x W, RGB with SAM's mean and std taken off, to B x 256 x H/16 x W/16.

    Args:
        img_size: Side in pixels that `SamPredictor` resizes and pads to; the weights do not depend on it.
        num_classes: Number of classes of a linear classifier on the features, 0 for the features themselves.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        device: Where to put the parameters.
        dtype: What to make of them.
        **kwargs: timm's TinyVit's.
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
        cast(Any, self.stages[-1]).downsample.conv2.conv.stride = (1, 1)
        self.feature_info[-1]["reduction"] = STRIDE
        self._make_sam(SamNeck(self.num_features), img_size, num_classes, global_pool, drop_rate, device, dtype)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        matcher = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"].append((r"^neck", (99999,)))
        return matcher


_MOBILE_SAM_NAMES = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.norm2."),
    # timm has the downsampling at the beginning of a stage, MobileSAM at the end of the one before
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
    (r"\.c\.weight$", ".conv.weight"),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Rename MobileSAM's weights, of the encoder or of the whole model; leave ours as they are."""
    out = {}
    for key, value in encoder_weights(state_dict).items():
        # The classifier of MobileSAM's pretraining is never used; the indices are computed.
        if key.startswith(("norm_head.", "head.")) or key.endswith("attention_bias_idxs"):
            continue
        for pattern, replacement in _MOBILE_SAM_NAMES:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


default_cfgs = generate_default_cfgs(
    {"sam_tiny_vit_5m.untrained": sam_cfg(first_conv="patch_embed.conv1.conv", classifier="head.fc")}
)


@register_model
def sam_tiny_vit_5m(pretrained: bool = False, **kwargs: Any) -> SamTinyVit:
    """MobileSAM's image encoder, ViT-T."""
    model_args = {
        "embed_dims": (64, 128, 160, 320),
        "depths": (2, 2, 6, 2),
        "num_heads": (2, 4, 5, 10),
        "window_sizes": (7, 7, 14, 7),
        "drop_path_rate": 0.0,
    }
    return build_model_with_cfg(
        SamTinyVit,
        "sam_tiny_vit_5m",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"},
        **dict(model_args, **kwargs),
    )
