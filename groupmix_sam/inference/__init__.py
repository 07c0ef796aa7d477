"""Inference on the machine at the line: a faster encoder, a faster decoder, and other runtimes."""

from .fused_encoder import fuse_encoder
from .predictor import Predictor

__all__ = ["FusedDecoder", "Predictor", "everything", "fuse_encoder", "segment"]
