"""Distillation: a small encoder learns the features of a large one's from unlabelled images."""

from ..errors import MissingExtraError
from ..images import ImageFile, find_images

try:
    import accelerate as _accelerate  # noqa: F401
    import yaml as _yaml  # noqa: F401
except ImportError as e:
    raise MissingExtraError.of(str(e.name), "distill") from e

from .adaptation import ADAPT, adapt
from .cache import cache_bytes, cache_features
from .data import CachedImage, Grid
from .decoder import FrozenDecoder
from .pipeline import distill
from .recipe import JOINT_RATE, PRESETS, DecoderRecipe, Phase, Recipe, load_recipe
from .run import RunOptions
from .student import check_student
from .teacher import Teacher, load_teacher
from .trainer import r2_score, train_student

__all__ = [
    "ADAPT",
    "JOINT_RATE",
    "PRESETS",
    "CachedImage",
    "DecoderRecipe",
    "FrozenDecoder",
    "Grid",
    "ImageFile",
    "Phase",
    "Recipe",
    "RunOptions",
    "Teacher",
    "adapt",
    "cache_bytes",
    "cache_features",
    "check_student",
    "distill",
    "find_images",
    "load_recipe",
    "load_teacher",
    "r2_score",
    "train_student",
]
