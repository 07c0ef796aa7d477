"""Live video: sources, the loop over frames, and what it writes."""

from .loop import Prompts, Result, stream
from .sinks import Clock, MaskFile, Overlay
from .sources import Frames
from .tracker import TrackedObject, Tracker

__all__ = ["Clock", "Frames", "MaskFile", "Overlay", "Prompts", "Result", "TrackedObject", "Tracker", "stream"]
