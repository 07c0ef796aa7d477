"""A GroupMixFormer rearranged for inference: the same outputs from fewer passes over memory.

Of the encoder's time in PyTorch on a CPU less than half is matrix products; the rest is copying, and page faults where
tensors of tens of MB are allocated anew for every layer. So every BatchNorm, LayerNorm's weights and the residual of the
position encoding go into the convolution or the product beside them; the attention works through its segments one by one,
each one's q, k and v side by side, so that nothing is transposed, stacked or concatenated on the way; and the MLP works
through the tokens in chunks that stay in the cache.
"""

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..encoders.groupmixformer import (
    Block,
    ConvRelPosEnc,
    GroupAggregator,
    GroupMixAttention,
    GroupMixFormer,
    PatchEmbed,
    SeparableConv,
    to_nchw,
    to_nhwc,
)
from ..errors import InvalidInputError

__all__ = ["fuse_encoder"]

# Tokens that go through the MLP at a time: of the widest stage, 2.6 MB in fp32.
CHUNK = 1024


def fuse_encoder(encoder: nn.Module) -> GroupMixFormer:
    """Return a copy of a GroupMixFormer for inference, in eval mode: the same to 1e-4 of the largest output, and faster.

    It takes the encoder's place in a Sam. It cannot be trained, and its weights have no names that anything else loads. Of one
    that is fused already it is but a copy.

    Raises:
        InvalidInputError: not a GroupMixFormer, or one whose heads lie across segments.
    """
    if not isinstance(encoder, GroupMixFormer):
        raise InvalidInputError(f"a {type(encoder).__name__} cannot be fused: give one of the gmf_sam_ encoders.")
    if encoder.is_fused:
        return deepcopy(encoder)
    original = next(encoder.parameters())
    # In fp64, so that folding rounds once; on the CPU, as Apple's MPS has no fp64.
    fused = deepcopy(encoder).eval().requires_grad_(False).cpu().double()
    fused.stem = cast(Any, _fuse_stem(fused.stem))
    for stage in cast(Any, fused.stages):
        stage.patch_embed = FusedPatchEmbed(stage.patch_embed)
        stage.blocks = nn.Sequential(*(FusedBlock(block) for block in stage.blocks))
    fused.is_fused = True
    return fused.to(original.device, original.dtype)


def is_traced() -> bool:
    """Whether operations are being recorded, by torch.compile, torch.export, torch.jit.trace or the older ONNX exporter.

    What is done in chunks, in place or by the number of prompts must then be done at once: a recording keeps one case of it.
    """
    return torch.compiler.is_compiling() or bool(cast(Any, torch.jit).is_tracing())


def _fuse_stem(stem: nn.Module) -> nn.Sequential:
    layers = cast(Any, stem)
    return nn.Sequential(
        fuse_conv_bn_eval(layers.conv1, layers.norm1), layers.act1, fuse_conv_bn_eval(layers.conv2, layers.norm2), layers.act2
    )


class FusedPatchEmbed(nn.Module):
    """PatchEmbed with its BatchNorm in the 1x1 convolution, which is a matrix product here; NCHW in and out."""

    def __init__(self, embed: PatchEmbed) -> None:
        super().__init__()
        layers = cast(Any, embed)
        self.conv_dw = layers.proj.conv_dw
        self.conv_pw = _as_linear(fuse_conv_bn_eval(layers.proj.conv_pw, layers.norm))
        self.act = layers.act

    def forward(self, x: Tensor) -> Tensor:
        return to_nchw(self.act(self.conv_pw(to_nhwc(self.conv_dw(x)))))


class FusedSegment(nn.Module):
    """One of the four segments that attend: from the block's normalised tokens to the attention's output, B x H x W x C/5.

    The channels of q, k and v lie side by side, so one depthwise convolution gathers all three, and one product mixes them.
    """

    head_mask: Tensor

    def __init__(self, attn: GroupMixAttention, qkv: nn.Linear, index: int) -> None:
        super().__init__()
        aggregator = attn.aggregator
        self.size = size = aggregator.seg_dim
        scale, shift = (t[index * size :][:size] for t in _batch_norm_as_affine(aggregator.norm))
        self.qkv = qkv
        self.conv_dw: nn.Module = nn.Identity()
        self.conv_pw: nn.Module = nn.Identity()
        if index == 0:
            scale, shift = scale.repeat(3), shift.repeat(3)
            self.qkv = _linear(scale[:, None] * qkv.weight, scale * qkv.bias + shift)
        else:
            conv = cast(SeparableConv, aggregator.convs[index - 1])
            self.conv_dw = _depthwise(conv.conv_dw.weight.repeat(3, 1, 1, 1))
            self.conv_pw = _linear(scale[:, None] * conv.conv_pw.weight[:, :, 0, 0], shift)
        self.act = aggregator.act
        self.crpe = _depthwise(*_rel_pos_weights(attn.crpe, index * size, size))
        self.register_buffer("head_mask", attn.head_mask[index * size :, index * size :][:size, :size].clone())

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = to_nhwc(self.conv_dw(to_nchw(self.qkv(x))))
        q, k, v = self.act(self.conv_pw(x.unflatten(-1, (3, self.size)))).unbind(-2)
        # In fp32, as in the encoder: fp16 underflows. Transposed first, as a softmax along memory takes half the time.
        k = k.flatten(1, 2).transpose(1, 2).contiguous()
        with torch.autocast(x.device.type, enabled=False):
            kv = k.float().softmax(dim=2) @ v.flatten(1, 2).float()
        out = q * to_nhwc(self.crpe(to_nchw(v)))
        return out + (q.flatten(1, 2) @ (kv * self.head_mask).to(q.dtype)).unflatten(1, (height, width))


class FusedLocalSegment(nn.Module):
    """The fifth segment, which skips the attention; B x H x W x C to B x H x W x C/5."""

    def __init__(self, aggregator: GroupAggregator, qkv: nn.Linear) -> None:
        super().__init__()
        self.qkv = qkv
        self.conv_dw = aggregator.local_conv.conv_dw
        self.conv_pw = _as_linear(aggregator.local_conv.conv_pw)
        self.norm = aggregator.local_norm
        self.act = aggregator.local_act

    def forward(self, x: Tensor) -> Tensor:
        x = to_nhwc(self.conv_dw(to_nchw(self.qkv(x))))
        return self.act(self.norm(self.conv_pw(x)))


class FusedBlock(nn.Module):
    """Block, B x H x W x C."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attn = block.attn
        if attn.num_heads % 4:
            raise InvalidInputError(f"{attn.num_heads} heads lie across the four segments: fuse one with a multiple of 4.")
        self.cpe = deepcopy(block.cpe)
        middle = self.cpe.kernel_size[0] // 2
        self.cpe.weight[:, :, middle, middle] += 1  # the residual
        self.norm = nn.LayerNorm(block.norm1.normalized_shape, eps=block.norm1.eps, elementwise_affine=False)
        qkv = _norm_into_linear(block.norm1, attn.qkv)
        shape = (3, GroupAggregator.segments, -1)
        split = (t.unflatten(0, shape).transpose(0, 1).flatten(1, 2) for t in (qkv.weight, qkv.bias))
        products = [_linear(weight, bias) for weight, bias in zip(*split, strict=True)]
        self.segments = nn.ModuleList(FusedSegment(attn, product, i) for i, product in enumerate(products[:-1]))
        self.segments.append(FusedLocalSegment(attn.aggregator, products[-1]))
        self.proj = attn.proj
        self.fc1 = _norm_into_linear(block.norm2, cast(nn.Linear, block.mlp.fc1))
        self.act = block.mlp.act
        self.fc2 = block.mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        x = to_nhwc(self.cpe(to_nchw(x)))
        y = self.norm(x)
        segments = [segment(y) for segment in self.segments]
        if x.device.type != "cpu" or is_traced():
            return self.mix(x, segments)
        del y
        tokens = [t.flatten(0, 2).split(CHUNK) for t in (x, *segments)]
        for chunk, *parts in zip(*tokens, strict=True):
            chunk.copy_(self.mix(chunk, parts))
        return x

    def mix(self, x: Tensor, segments: list[Tensor]) -> Tensor:
        """The rest of the block, which looks at each token alone."""
        x = x + self.proj(torch.cat(segments, dim=-1))
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype, device=weight.device)
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return linear


def _as_linear(conv: nn.Conv2d) -> nn.Linear:
    return _linear(conv.weight[:, :, 0, 0], conv.bias)


def _depthwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    channels, _, _, size = weight.shape
    conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=bias is not None)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv


def _norm_into_linear(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    bias = linear.weight @ norm.bias
    return _linear(linear.weight * norm.weight, bias if linear.bias is None else bias + linear.bias)


def _batch_norm_as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight, norm.bias - norm.running_mean * weight


def _rel_pos_weights(crpe: ConvRelPosEnc, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of some of the channels, the smaller kernels padded to the largest among them."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for conv in cast(Any, crpe.convs):
        weights += conv.weight
        biases += conv.bias
    weights = weights[start : start + size]
    largest = max(weight.shape[-1] for weight in weights)
    padded = [F.pad(weight, [(largest - weight.shape[-1]) // 2] * 4) for weight in weights]
    return torch.stack(padded), torch.stack(biases[start : start + size])
