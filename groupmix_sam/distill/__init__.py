"""Distillation: a small encoder learns the features of MobileSAM's from unlabelled pictures."""

from .data import find_pictures
from .teacher import cache_features, load_teacher
from .train import Phase, Recipe, check_student, distill, r2_score

__all__ = ["Phase", "Recipe", "cache_features", "check_student", "distill", "find_pictures", "load_teacher", "r2_score"]
