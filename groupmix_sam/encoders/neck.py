"""Necks: from a backbone's feature maps to SAM's image embedding.

Every SAM encoder ends in 256 channels at stride 16 (64 x 64 for a 1024 x 1024 input), which is what SAM's prompt encoder
and mask decoder expect.
"""

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from .config import EMBED_DIM, STRIDE

__all__ = ["ConcatNeck", "NanoSamNeck", "SamNeck", "change_stride"]


def change_stride(x: Tensor, stride: int, to: int) -> Tensor:
    """Return features, B x C x h x w, resized from one stride to another: by area where it grows, else bilinearly."""
    if stride < to:
        return F.avg_pool2d(x, to // stride)
    return x if stride == to else F.interpolate(x, scale_factor=stride // to, mode="bilinear", align_corners=False)


class ConcatNeck(nn.Module):
    """The neck of Group-Mix SAM: a middle stage resized to the features' grid, concatenated with the last, one 1x1 convolution.

    The paper (arXiv 2403.10053) prints only the totals; these 61 440 weights are the ones that match all its rows.
    """

    def __init__(self, mid_chs: int, last_chs: int, mid_stride: int, stride: int, out_chs: int = EMBED_DIM) -> None:
        super().__init__()
        self.mid_stride = mid_stride
        self.stride = stride
        self.proj = nn.Conv2d(mid_chs + last_chs, out_chs, kernel_size=1, bias=False)

    def forward(self, mid: Tensor, last: Tensor) -> Tensor:
        mid = change_stride(mid, self.mid_stride, self.stride)
        return self.proj(torch.cat([mid, change_stride(last, STRIDE, self.stride)], dim=1))


class SamNeck(nn.Module):
    """The neck of SAM and MobileSAM (arXiv 2304.02643): 1x1 convolution, LayerNorm, 3x3 convolution, LayerNorm."""

    def __init__(self, in_chs: int, out_chs: int = EMBED_DIM) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, kernel_size=1, bias=False)
        self.norm1 = LayerNorm2d(out_chs, eps=1e-6)
        self.conv2 = nn.Conv2d(out_chs, out_chs, kernel_size=3, padding=1, bias=False)
        self.norm2 = LayerNorm2d(out_chs, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(x))


class NanoSamNeck(nn.Module):
    """The neck of NanoSAM's ResNet18 (github.com/NVIDIA-AI-IOT/nanosam): stride 32 to 16, plus a position embedding.

    The embedding is learnt for 64 x 64 and resized to other grids. thop, and so the paper's 14.78 M, does not count it.
    """

    def __init__(self, in_chs: int, out_chs: int = EMBED_DIM) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv2d(in_chs, out_chs, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(out_chs, out_chs, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(out_chs, out_chs, kernel_size=3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(out_chs, out_chs, kernel_size=3, stride=2, padding=1, output_padding=1),
            nn.GELU(),
        )
        self.proj = nn.Sequential(
            nn.Conv2d(out_chs, out_chs, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(out_chs, out_chs, kernel_size=1),
        )
        self.pos_embed = nn.Parameter(1e-5 * torch.randn(1, out_chs, 64, 64))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        # Stride 32 rounds up, so that a grid of odd sides comes out one too large.
        x = self.proj(self.up(x))[..., : grid[0], : grid[1]]
        pos_embed: Tensor = self.pos_embed
        if pos_embed.shape[-2:] != grid:
            pos_embed = F.interpolate(pos_embed, grid, mode="bilinear", align_corners=False)
        return x + pos_embed
