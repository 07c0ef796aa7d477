"""Inference on the machine at the line: a faster encoder, a faster decoder, and other runtimes."""

from .automatic import everything, segment
from .fused_decoder import FusedDecoder
from .fused_encoder import fuse_encoder
from .predictor import Predictor
from .protocol import MaskPredictor

__all__ = ["FusedDecoder", "MaskPredictor", "Predictor", "everything", "fuse_encoder", "segment"]
