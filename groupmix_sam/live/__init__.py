"""Live video: sources, the loop over frames, the tracker, and what is written."""

from .loop import Result, stream, track
from .partial import PartialPredictor
from .sinks import Clock, CocoVideo, Crops, MaskFile, Overlay
from .sources import Frame, Frames
from .tracker import TrackedObject, Tracker

__all__ = [
    "Clock",
    "CocoVideo",
    "Crops",
    "Frame",
    "Frames",
    "MaskFile",
    "Overlay",
    "PartialPredictor",
    "Result",
    "TrackedObject",
    "Tracker",
    "stream",
    "track",
]
