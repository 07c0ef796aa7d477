"""Image encoders for Segment Anything, registered in timm when this package is imported."""

from .backbone import SamBackbone
from .groupmixformer import GroupMixFormer
from .resnet import SamResNet
from .tiny_vit import SamTinyVit

__all__ = ["GroupMixFormer", "SamBackbone", "SamResNet", "SamTinyVit"]
