"""Distillation: a small encoder learns the features of MobileSAM's from unlabelled pictures."""

from .data import find_pictures
from .teacher import cache_features, load_teacher
from .train import Phase, Recipe, distill, r2_score

__all__ = ["Phase", "Recipe", "cache_features", "distill", "find_pictures", "load_teacher", "r2_score"]
