"""A classifier on a SAM encoder's features, which is how timm's users fine-tune any backbone."""

from typing import Any

from timm.layers import ClassifierHead

from ..errors import InvalidInputError
from .config import EMBED_DIM

__all__ = ["SamHead"]


class SamHead(ClassifierHead):
    """timm's classifier head that, without classes, passes the feature map on as it is: B x 256 x H/16 x W/16."""

    def __init__(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        _check(num_classes, global_pool)
        super().__init__(EMBED_DIM, num_classes, pool_type=global_pool if num_classes else "", drop_rate=drop_rate)
        self.sam_pool = global_pool

    def reset(self, num_classes: int, pool_type: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Change the number of classes; a pooling of None stays what it was."""
        pool_type = self.sam_pool if pool_type is None else pool_type
        _check(num_classes, pool_type)
        super().reset(num_classes, pool_type if num_classes else "", *args, **kwargs)
        self.sam_pool = pool_type


def _check(num_classes: int, global_pool: str) -> None:
    if num_classes and not global_pool:
        raise InvalidInputError(f"{num_classes} classes need a pooled feature: give global_pool='avg' or another.")
