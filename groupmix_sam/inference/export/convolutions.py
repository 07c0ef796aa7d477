"""A fused GroupMixFormer as the other runtimes run it fastest: images stay B x C x H x W, and every product is a convolution.

These runtimes choose the memory's layout themselves, by the convolutions. Products of tokens between depthwise convolutions, as
PyTorch wants them, make them transpose and copy: in OpenVINO nearly a third of the time. So what mixes channels is a 1x1
convolution; q, k and v come from one each, padded with zeros, rather than from one that is split; and LayerNorm's mean and
variance are 1x1 convolutions to one channel, for which there are better kernels than for a mean over channels.
"""

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...encoders.groupmixformer import GroupMixFormer, to_nchw, to_nhwc
from ..fused_encoder import FusedBlock, FusedLocalSegment, FusedPatchEmbed, FusedSegment

__all__ = ["as_convolutions"]


def as_convolutions(fused: GroupMixFormer) -> GroupMixFormer:
    """Return a copy of what `fuse` returned, the same to rounding, for exporting."""
    out = deepcopy(fused)
    stages = ([stage.patch_embed, *stage.blocks] for stage in cast(Any, out.stages))
    out.stages = nn.Sequential(*(nn.Sequential(_patch_embed(first), *map(ConvBlock, blocks)) for first, *blocks in stages))
    return out


class ConvNorm(nn.Module):
    """LayerNorm over the channels of B x C x H x W, in fp32 whatever the dtype, as squares overflow fp16."""

    mean: Tensor
    affine: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        channels = norm.normalized_shape[0]
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 1 / channels))
        affine = torch.stack([norm.weight, norm.bias]) if norm.elementwise_affine else torch.empty(0)
        self.register_buffer("affine", affine.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean.float()
        y = x.float() - F.conv2d(x.float(), mean)
        y = (y * (F.conv2d(y * y, mean) + self.eps).rsqrt()).to(x.dtype)
        if not len(self.affine):
            return y
        weight, bias = self.affine[..., None, None]
        return y * weight + bias


class ConvSegment(nn.Module):
    """FusedSegment."""

    head_mask: Tensor

    def __init__(self, segment: FusedSegment) -> None:
        super().__init__()
        if isinstance(segment.conv_dw, nn.Identity):
            self.gather = nn.Sequential()
            weights, biases = segment.qkv.weight.chunk(3), segment.qkv.bias.chunk(3)
        else:
            self.gather = nn.Sequential(_conv(segment.qkv), segment.conv_dw)
            mix = cast(nn.Linear, segment.conv_pw)
            weights = torch.block_diag(*[mix.weight] * 3).chunk(3)
            biases = (mix.bias,) * 3
        self.qkv = nn.ModuleList(_conv_of(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        self.act = segment.act
        self.crpe = segment.crpe
        self.register_buffer("head_mask", segment.head_mask)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gather(x)
        q, k, v = (self.act(conv(x)) for conv in self.qkv)
        size = q.shape[2:]
        kv = _tokens(k).transpose(1, 2).float().softmax(dim=2) @ _tokens(v).float()
        attended = _tokens(q) @ (kv * self.head_mask).to(q.dtype)
        return to_nchw(attended.unflatten(1, size)) + q * self.crpe(v)


class ConvBlock(nn.Module):
    """FusedBlock, B x C x H x W."""

    def __init__(self, block: FusedBlock) -> None:
        super().__init__()
        *segments, local = cast(Any, block.segments)
        self.cpe = block.cpe
        self.norm = ConvNorm(block.norm)
        self.segments = nn.ModuleList([*map(ConvSegment, segments), _local_segment(local)])
        self.proj = _conv(block.proj)
        self.mlp = nn.Sequential(self.norm, _conv(block.fc1), block.act, _conv(cast(nn.Linear, block.fc2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe(x)
        y = self.norm(x)
        x = x + self.proj(torch.cat([segment(y) for segment in self.segments], dim=1))
        return x + self.mlp(x)


def _patch_embed(embed: FusedPatchEmbed) -> nn.Sequential:
    return nn.Sequential(embed.conv_dw, _conv(embed.conv_pw), embed.act)


def _local_segment(segment: FusedLocalSegment) -> nn.Sequential:
    return nn.Sequential(_conv(segment.qkv), segment.conv_dw, _conv(segment.conv_pw), ConvNorm(segment.norm), segment.act)


def _tokens(x: Tensor) -> Tensor:
    """B x C x H x W to B x N x C."""
    return to_nhwc(x).flatten(1, 2)


def _conv(linear: nn.Linear) -> nn.Conv2d:
    return _conv_of(linear.weight, linear.bias)


def _conv_of(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1, bias=bias is not None)
    conv.weight = nn.Parameter(weight[:, :, None, None].contiguous(), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return conv
