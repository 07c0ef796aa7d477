"""Inference on the machine at the line: a faster encoder, a faster decoder, and other runtimes."""

from .automatic import everything, segment
from .fused_decoder import FusedDecoder
from .fused_encoder import fuse_encoder
from .mask_predictor import MaskPredictor
from .predictor import Predictor

__all__ = ["FusedDecoder", "MaskPredictor", "Predictor", "everything", "fuse_encoder", "segment"]
