"""Image encoders for Segment Anything, registered in timm when this package is imported."""

from .groupmixformer import GroupMixFormer
from .resnet import SamResNet
from .tiny_vit import SamTinyVit

__all__ = ["GroupMixFormer", "SamResNet", "SamTinyVit"]
