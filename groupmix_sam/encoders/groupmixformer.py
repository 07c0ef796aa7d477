"""GroupMixFormer

Papers:
    * `Advancing Vision Transformers with Group-Mix Attention` - https://arxiv.org/abs/2311.15157
    * `Group-Mix SAM: Lightweight Solution for Industrial Assembly Line Applications` -
      https://arxiv.org/abs/2403.10053

The "mobile" size of GroupMixFormer, as a classifier and as the image encoder of Group-Mix SAM. Written from the papers and
checked against the outputs of the official implementation, https://github.com/AILab-CVC/GroupMixFormer, whose weights load
through `checkpoint_filter_fn`.

Tokens stay in NHWC memory from the stem to the neck: LayerNorm and Linear work on the last axis, and the same memory seen as
NCHW is `channels_last`, which is what depthwise convolutions want. Changing between the two views copies nothing.
"""

# Copyright 2026 The groupmix-sam authors. Licensed under the Apache License, Version 2.0.

import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, Mlp, calculate_drop_path_rates, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import InvalidInputError
from .config import (
    EMBED_DIM,
    STRIDE,
    check_embed_stride,
    check_img_size,
    check_input,
    encoder_weights,
    pretrained_file,
    sam_cfg,
)
from .head import SamHead
from .neck import ConcatNeck, SamNeck, change_stride

__all__ = ["GroupMixFormer"]


def to_nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def to_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


class SeparableConv(nn.Sequential):
    """Depthwise convolution and a 1x1 convolution, neither with bias."""

    def __init__(self, in_chs: int, out_chs: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_chs, in_chs, kernel_size, stride, padding=kernel_size // 2, groups=in_chs, bias=False)
        self.conv_pw = nn.Conv2d(in_chs, out_chs, kernel_size=1, bias=False)


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2: B x in_chs x H x W to B x out_chs x H/4 x W/4."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs // 2, kernel_size=3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(out_chs // 2)
        self.act1 = nn.Hardswish(inplace=True)
        self.conv2 = nn.Conv2d(out_chs // 2, out_chs, kernel_size=3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(out_chs)
        self.act2 = nn.Hardswish(inplace=True)


class PatchEmbed(nn.Sequential):
    """The first layer of a stage: to the stage's width and stride."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.proj = SeparableConv(in_chs, out_chs, kernel_size=3, stride=stride)
        self.norm = nn.BatchNorm2d(out_chs)
        self.act = nn.Hardswish(inplace=True)


class GroupAggregator(nn.Module):
    """Group aggregators over q, k and v: what makes tokens stand for groups of tokens.

    The channels fall into five segments. Four go on to the attention: as they are, and gathered by separable convolutions of
    size 3, 5 and 7, the same for q, k and v. The fifth skips the attention: one separable convolution over its q, k and v.
    """

    segments = 5

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seg_dim = seg_dim = dim // self.segments
        self.convs = nn.ModuleList(SeparableConv(seg_dim, seg_dim, kernel_size) for kernel_size in (3, 5, 7))
        # The official code has one BatchNorm a segment: over their concatenation it is the same, in one pass.
        self.norm = nn.BatchNorm2d(4 * seg_dim)
        self.act = nn.Hardswish(inplace=True)
        self.local_conv = SeparableConv(3 * seg_dim, seg_dim, kernel_size=3)
        self.local_norm = nn.LayerNorm(seg_dim)
        self.local_act = nn.Hardswish(inplace=True)

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take B x H x W x 3C; return q, k, v of B x H x W x 4C/5 and the fifth segment, B x H x W x C/5."""
        segments = qkv.unflatten(-1, (3, self.segments, self.seg_dim)).permute(4, 3, 0, 1, 2, 5)  # 5, 3, B, H, W, C/5
        # BatchNorm has one statistic for q, k and v, so they share the batch axis. Where B is 1, flatten() copies nothing
        # and leaves strides that convolutions do not take for channels_last: without contiguous() they are 10x slower.
        first, *rest = (to_nchw(segment.flatten(0, 1).contiguous()) for segment in segments[:-1])
        x = torch.cat([first, *(conv(segment) for conv, segment in zip(self.convs, rest, strict=True))], dim=1)
        q, k, v = to_nhwc(self.act(self.norm(x))).unflatten(0, (3, -1))

        local = segments[-1].permute(1, 2, 3, 0, 4).flatten(3)
        local = to_nhwc(self.local_conv(to_nchw(local)))
        return q, k, v, self.local_act(self.local_norm(local))


class ConvRelPosEnc(nn.Module):
    """Convolutional relative position encoding (CoaT, arXiv 2104.06399): depthwise convolutions of v, wider by head."""

    def __init__(self, head_dim: int, num_heads: int) -> None:
        super().__init__()
        third = 3 * num_heads // 8
        self.splits = [heads * head_dim for heads in (num_heads - 2 * third, third, third)]
        self.convs = nn.ModuleList(
            nn.Conv2d(chs, chs, kernel_size, padding=kernel_size // 2, groups=chs)
            for chs, kernel_size in zip(self.splits, (3, 5, 7), strict=True)
        )

    def forward(self, v: Tensor) -> Tensor:
        parts = to_nchw(v).split(self.splits, dim=1)
        return to_nhwc(torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], dim=1))


class GroupMixAttention(nn.Module):
    """Group-Mix Attention: linear attention between tokens, groups of tokens and both, B x H x W x C."""

    head_mask: Tensor

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = True, proj_drop: float = 0.0) -> None:
        super().__init__()
        if num_heads < 3 or dim % GroupAggregator.segments or 4 * dim // GroupAggregator.segments % num_heads:
            raise InvalidInputError(
                f"width {dim} does not fall into 5 segments of which 4 fall into {num_heads} heads, 3 or more: "
                "give a multiple of 10 and 8 heads."
            )
        self.num_heads = num_heads
        head_dim = 4 * dim // GroupAggregator.segments // num_heads
        # The scale is the official code's: of the whole width, although a head is narrower without the fifth segment.
        self.scale = (dim // num_heads) ** -0.5
        self.register_buffer("head_mask", torch.empty(num_heads * head_dim, num_heads * head_dim), persistent=False)
        self.init_non_persistent_buffers()
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.aggregator = GroupAggregator(dim)
        self.crpe = ConvRelPosEnc(head_dim, num_heads)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def init_non_persistent_buffers(self) -> None:
        """Fill what is not in a state dict; timm calls this for models that were made on the meta device."""
        size = len(self.head_mask) // self.num_heads
        blocks = torch.ones(self.num_heads, size, size, device=self.head_mask.device)
        self.head_mask.copy_(self.scale * torch.block_diag(*blocks))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return scale * q (softmax(k)^T v), the softmax over the tokens: linear in their number."""
        # All heads in one product, of which the blocks on the diagonal stay: quicker than a thin product for each head,
        # and nothing is transposed. At 1024 x 1024 the softmax is over 65 536 tokens and underflows in fp16: it stays in fp32.
        with torch.autocast(q.device.type, enabled=False):
            kv = k.float().softmax(dim=1).transpose(1, 2) @ v.float()
            kv = (kv * self.head_mask).to(q.dtype)
        return q @ kv

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        q, k, v, local = self.aggregator(self.qkv(x))
        x = self.attend(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)).unflatten(1, (height, width))
        x = x + q * self.crpe(v)
        x = self.proj(torch.cat([x, local], dim=-1))
        return self.proj_drop(x)


class Block(nn.Module):
    """Residual depthwise convolution (as position encoding), Group-Mix Attention, MLP; B x H x W x C."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.cpe = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = GroupMixAttention(dim, num_heads, qkv_bias, proj_drop)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + to_nhwc(self.cpe(to_nchw(x)))
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Patch embedding and blocks: B x C x H x W in and out."""

    def __init__(self, in_chs: int, dim: int, stride: int, drop_path: list[float], **block_args: Any) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(in_chs, dim, stride)
        self.blocks = nn.Sequential(*(Block(dim, drop_path=rate, **block_args) for rate in drop_path))

    def forward(self, x: Tensor) -> Tensor:
        x = to_nhwc(self.patch_embed(x))
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return to_nchw(x)


class GroupMixFormer(nn.Module):
    """GroupMixFormer, a classifier or, with a neck, an image encoder for Segment Anything.

    Without a neck it is timm's usual classifier or backbone, with BatchNorm, pooling and a linear head. With a neck and no
    classes it maps B x 3 x H x W, RGB with SAM's mean and std taken off, to B x 256 x H/s x W/s, where s is `embed_stride`; H
    and W are multiples of 16.

    Args:
        img_size: Side in pixels that `SamPredictor` resizes and pads to; the weights do not depend on it.
        in_chans: Number of input channels.
        num_classes: Number of classes, 0 for none.
        global_pool: Pooling before the classifier.
        embed_dims: Width of each stage; as many are used as there are depths.
        depths: Number of blocks of each stage.
        strides: Stride of each stage, after the stem's 4.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP over its width.
        qkv_bias: Whether q, k and v have a bias.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the attention's projection and in the MLP.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        neck: None, "concat" (the paper's) or "sam" (SAM's; 0.57 M more parameters).
        embed_stride: Stride of the features after the neck: 16; or 8, where the last stage is resized up to the second one's
            grid, so that 512 x 512 pixels give the 64 x 64 features that SAM's decoder was trained on. The weights are the
            same.
        device: Where to put the parameters.
        dtype: What to make of them.
    """

    is_fused = False  # what `fuse_encoder` returns is, and its weights have other names

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (40, 80, 160, 160),
        depths: tuple[int, ...] = (3, 3, 12, 4),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        neck: str | None = None,
        embed_stride: int = STRIDE,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= len(depths) <= min(len(embed_dims), len(strides)):
            raise InvalidInputError(
                f"depths {depths} need a width and a stride each: embed_dims is {embed_dims}, strides {strides}."
            )
        self.img_size = img_size if neck is None else check_img_size(img_size)
        self.embed_stride = check_embed_stride(embed_stride)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate

        self.stem = Stem(in_chans, embed_dims[0])
        rates = cast(list[list[float]], calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True))
        reduction = 4
        chs = embed_dims[0]
        stages = []
        self.feature_info: list[dict[str, Any]] = []
        for i, dim in enumerate(embed_dims[: len(depths)]):
            stages.append(
                Stage(
                    chs,
                    dim,
                    strides[i],
                    rates[i],
                    num_heads=num_heads,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    proj_drop=proj_drop_rate,
                )
            )
            reduction *= strides[i]
            chs = dim
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)

        self.norm: nn.Module = nn.Identity()
        self.neck: ConcatNeck | SamNeck | None = None
        if neck is None:
            self.norm = nn.BatchNorm2d(chs)
        elif reduction != STRIDE:
            raise InvalidInputError(f"strides {strides} give a total stride of {reduction}: a SAM encoder's is {STRIDE}.")
        elif neck == "concat":
            if len(depths) < 2:
                raise InvalidInputError(f"depths is {depths}: the neck 'concat' needs two stages or more.")
            mid = self.feature_info[1]
            self.neck = ConcatNeck(mid["num_chs"], chs, mid["reduction"], embed_stride)
        elif neck == "sam":
            self.neck = SamNeck(chs, EMBED_DIM)
        else:
            raise InvalidInputError(f"neck is {neck!r}: use None, 'concat' or 'sam'.")
        self.num_features = chs if self.neck is None else EMBED_DIM
        self.head_hidden_size = self.num_features
        if self.neck is None:
            self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        else:
            self.head = SamHead(num_classes, global_pool, drop_rate)

        self.apply(self._init_weights)
        self.to(device, dtype)

    def _init_weights(self, m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    def no_weight_decay(self) -> set[str]:
        return set()  # biases and norms, which timm's optimizers leave out by themselves, are all

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.patch_embed", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm|^neck", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in cast(Iterable[Stage], self.stages):
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the stages' outputs, B x C x H x W, and unless intermediates_only the final features before them.

        Args:
            x: Images, B x C x H x W.
            indices: The last n stages if int, all if None, or those named.
            norm: Apply the final norm to the last stage's output, where there is one.
            stop_early: Stop after the last stage asked for.
            output_fmt: "NCHW", the only one there is.
            intermediates_only: Return the stages' outputs alone.
        """
        if output_fmt != "NCHW":
            raise InvalidInputError(f"output_fmt is {output_fmt!r}: only 'NCHW' is supported.")
        if self.neck is not None:
            check_input(x)
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        outputs = self._forward_stages(x, max_index if stop_early and intermediates_only else last)
        intermediates = [self.norm(outputs[i]) if norm and i == last else outputs[i] for i in take_indices]
        if intermediates_only:
            return intermediates
        return self._forward_neck(outputs), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the stages asked for do not need."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: max_index + 1]
        self.neck = None
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def _forward_stages(self, x: Tensor, last: int) -> list[Tensor]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for stage in self.stages[: last + 1]:
            x = stage(x)
            outputs.append(x)
        return outputs

    def _forward_neck(self, outputs: list[Tensor]) -> Tensor:
        if self.neck is None:
            return self.norm(outputs[-1])
        if isinstance(self.neck, ConcatNeck):
            return self.neck(outputs[1], outputs[-1])
        return self.neck(change_stride(outputs[-1], STRIDE, self.embed_stride))

    def forward_features(self, x: Tensor) -> Tensor:
        if self.neck is not None:
            check_input(x)
        return self._forward_neck(self._forward_stages(x, len(self.stages) - 1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


_OFFICIAL_NAMES = (
    (r"^conv_stem\.proj", "stem.conv"),
    (r"^conv_stem\.", "stem."),
    (r"^patch_embed_layers\.(\d+)\.", r"stages.\1.patch_embed."),
    (r"^groupmixformer_backbone\.(\d+)\.gma_stage\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.cpe\.proj\.", ".cpe."),
    (r"\.att\.", ".attn."),
    (r"\.aggregator\.agg0\.conv\.", ".aggregator.local_conv."),
    (r"\.aggregator\.agg0\.norm\.", ".aggregator.local_norm."),
    (r"\.aggregator\.agg1\.", ".aggregator.convs.0."),
    (r"\.aggregator\.agg2\.", ".aggregator.convs.1."),
    (r"\.aggregator\.agg3\.", ".aggregator.convs.2."),
    (r"\.conv1\.weight$", ".conv_dw.weight"),
    (r"\.pointwise_conv\.", ".conv_pw."),
    (r"\.crpe\.conv_list\.", ".crpe.convs."),
    (r"^stem\.conv_dw\.weight$", "stem.conv1.weight"),
    (r"^norm4\.", "norm."),
    (r"^head\.", "head.fc."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Rename the official GroupMixFormer's weights; take the encoder out of a whole Sam's; leave ours as they are."""
    state_dict = encoder_weights(state_dict)
    if not any(k.startswith("conv_stem.") for k in state_dict):
        return state_dict

    out: dict[str, Tensor] = {}
    segment_norms: dict[str, list[Tensor]] = {}
    for key, value in state_dict.items():
        for pattern, replacement in _OFFICIAL_NAMES:
            key = re.sub(pattern, replacement, key)
        if re.search(r"aggregator\.norm\d\.", key):  # one BatchNorm a segment: collected in order, 0 to 3
            segment_norms.setdefault(re.sub(r"norm\d", "norm", key), []).append(value)
        else:
            out[key] = value
    for key, values in segment_norms.items():
        out[key] = values[0] if key.endswith("num_batches_tracked") else torch.cat(values)
    return out


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {"first_conv": "stem.conv1", "classifier": "head.fc", **kwargs}


default_cfgs = generate_default_cfgs(
    {
        "groupmixformer_mobile.untrained": _cfg(
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=(7, 7),
            crop_pct=0.9,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            license="apache-2.0",
        ),
        "gmf_sam_2282.distilled": sam_cfg(**_cfg(file=pretrained_file("gmf_sam_2282"))),
        "gmf_sam_2282_512.distilled": sam_cfg(**_cfg(input_size=(3, 512, 512), file=pretrained_file("gmf_sam_2282_512"))),
        "gmf_sam_2264.untrained": sam_cfg(**_cfg()),
        "gmf_sam_33124.untrained": sam_cfg(**_cfg()),
        "gmf_sam_3312.untrained": sam_cfg(**_cfg()),
        "gmf_sam_3344.untrained": sam_cfg(**_cfg()),
        "gmf_sam_test.untrained": sam_cfg(**_cfg(input_size=(3, 256, 256))),
    }
)


def _create_groupmixformer(variant: str, pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs.get("depths", (3, 3, 12, 4))))))
    return build_model_with_cfg(
        GroupMixFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )


def _create_gmf_sam(variant: str, pretrained: bool, depths: tuple[int, ...], kwargs: dict[str, Any]) -> GroupMixFormer:
    """The stride stays at 16: the last stage does not downsample."""
    model_args = {"img_size": 1024, "num_classes": 0, "depths": depths, "strides": (1, 2, 2, 1), "neck": "concat"}
    return _create_groupmixformer(variant, pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def groupmixformer_mobile(pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    """GroupMixFormer of the mobile size, a classifier: stages 3, 3, 12, 4."""
    return _create_groupmixformer("groupmixformer_mobile", pretrained=pretrained, **kwargs)


@register_model
def gmf_sam_2282(pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    """The encoder that Group-Mix SAM ships: stages 2, 2, 8, 2."""
    return _create_gmf_sam("gmf_sam_2282", pretrained, (2, 2, 8, 2), kwargs)


@register_model
def gmf_sam_2282_512(pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    """`gmf_sam_2282` for 512 x 512 pixels, with features at stride 8: the same weights, a quarter of the multiplications."""
    return _create_gmf_sam("gmf_sam_2282_512", pretrained, (2, 2, 8, 2), {"img_size": 512, "embed_stride": 8, **kwargs})


@register_model
def gmf_sam_2264(pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    """SAM encoder, stages 2, 2, 6, 4."""
    return _create_gmf_sam("gmf_sam_2264", pretrained, (2, 2, 6, 4), kwargs)


@register_model
def gmf_sam_33124(pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    """SAM encoder, stages 3, 3, 12, 4."""
    return _create_gmf_sam("gmf_sam_33124", pretrained, (3, 3, 12, 4), kwargs)


@register_model
def gmf_sam_3312(pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    """SAM encoder of three stages, 3, 3, 12."""
    return _create_gmf_sam("gmf_sam_3312", pretrained, (3, 3, 12), kwargs)


@register_model
def gmf_sam_3344(pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    """SAM encoder, stages 3, 3, 4, 4."""
    return _create_gmf_sam("gmf_sam_3344", pretrained, (3, 3, 4, 4), kwargs)


@register_model
def gmf_sam_test(pretrained: bool = False, **kwargs: Any) -> GroupMixFormer:
    """A tiny SAM encoder for tests: one block a stage, 40 wide at most."""
    model_args = {"img_size": 256, "embed_dims": (40, 40, 40, 40), "mlp_ratio": 1.0}
    return _create_gmf_sam("gmf_sam_test", pretrained, (1, 1, 1, 1), dict(model_args, **kwargs))
