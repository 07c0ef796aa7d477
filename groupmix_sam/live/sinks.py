"""What a live run writes: masks, overlays and its rate."""

import json
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import InvalidInputError, SaveError, import_extra
from ..masks import encode_rle
from ..visualize import draw_masks
from .loop import Result
from .sources import DEFAULT_RATE

__all__ = ["Clock", "MaskFile", "Overlay"]


class Clock:
    """Frames per second and latencies over the last thousand frames."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=1000)
        self._latencies: deque[float] = deque(maxlen=1000)

    def add(self, seconds: float) -> None:
        """Count a frame that took `seconds` and ends now."""
        self._ends.append(time.perf_counter())
        self._latencies.append(seconds)

    def summary(self) -> str:
        """Return one line for a log."""
        if not self._latencies:
            return "no frame yet"
        passed = self._ends[-1] - self._ends[0]
        rate = f"{(len(self._ends) - 1) / passed:.1f}" if passed > 0 else "-"
        middle, high, most = np.percentile(list(self._latencies), (50, 95, 99)) * 1000
        return f"{rate} frames/s, latency {middle:.0f} ms median, {high:.0f} ms 95 %, {most:.0f} ms 99 %"


class _Output(ABC):
    """A file that is written beside its name and takes it when closed, also after an error: what was seen is kept.

    Where no frame was written, a file of that name stays as it was.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise InvalidInputError(f"cannot write {self.path}: give a file in a folder that exists.")
        self.part = self.path.with_name(f".{os.getpid()}.part.{self.path.name}")
        self.frames = 0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if self.frames:
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)

    @abstractmethod
    def close(self) -> None:
        """Close what was written to."""


class MaskFile(_Output):
    """Masks as JSON, a line a frame: its number, seconds, scores and COCO's compressed run lengths."""

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path)
        try:
            self._file = self.part.open("w", encoding="utf-8")
        except OSError as e:
            raise SaveError(f"{self.path} cannot be written ({e}): give a file in a folder of yours.") from e

    def write(self, result: Result) -> None:
        """Add a frame."""
        record = {
            "frame": result.number,
            "seconds": round(result.seconds, 4),
            "scores": [round(float(score), 4) for score in result.scores],
            "masks": [encode_rle(mask) for mask in result.masks],
        }
        try:
            print(json.dumps(record), file=self._file, flush=True)  # so that a disk that is full is told of here
        except OSError as e:
            raise SaveError(f"{self.path} cannot be written ({e}): free some space; the frames before are kept.") from e
        self.frames += 1

    def close(self) -> None:
        with suppress(OSError):  # what a full disk did not take, which has been told of
            self._file.close()


class Overlay(_Output):
    """A video, MP4 or AVI, of the frames with their masks drawn over them."""

    def __init__(self, path: str | PathLike[str], frames_per_second: float = DEFAULT_RATE) -> None:
        super().__init__(path)
        self._cv2 = import_extra("cv2", "stream")
        self._codec = {".mp4": "mp4v", ".avi": "MJPG"}.get(self.path.suffix.lower(), "")
        if not self._codec:
            raise InvalidInputError(f"cannot write {self.path}: give a name that ends in .mp4 or .avi.")
        self._rate = frames_per_second
        self._writer: Any = None

    def write(self, result: Result) -> None:
        """Add a frame."""
        if self._writer is None:
            height, width = result.frame.shape[:2]
            codec = self._cv2.VideoWriter.fourcc(*self._codec)
            self._writer = self._cv2.VideoWriter(str(self.part), codec, self._rate, (width, height))
            if not self._writer.isOpened():
                raise InvalidInputError(f"OpenCV cannot write {self.path}: give a name that ends in .avi.")
        drawn = draw_masks(result.frame[:, :, ::-1], list(result.masks))
        self._writer.write(np.asarray(drawn)[:, :, ::-1])
        self.frames += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
