"""Frames of cameras, streams and video files."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageReadError, import_extra

__all__ = ["Frame", "Frames"]

# Frames per second of an overlay where nothing says how many there are.
DEFAULT_RATE = 10.0


class Frame(NamedTuple):
    """A frame: its number from 0, its time in seconds and its pixels, H x W x 3, BGR, uint8.

    A file's times count from its start, as the file has them. A camera's are those of the clock (since 1970), when the frame
    was read.
    """

    number: int
    time: float
    image: NDArray[np.uint8]


class Frames:
    """The frames of a video file, all of them, or of a camera or a URL, the newest only.

    A camera or URL that drops out is opened again until `patience` is over. So is one that does not answer: its thread is left
    behind, and a fresh one opens it anew after a third of `patience`. One frame is held at a time: those that arrive while one
    is worked on replace each other, and their numbers are skipped. A video that says how it is rotated comes upright.

    Args:
        source: A camera's index as "0" or its device as "/dev/video0", a URL such as "rtsp://...", a GStreamer pipeline, whose
            elements are joined by " ! " and which an OpenCV with GStreamer opens, or a file, by path or "file://...".
        patience: Seconds without a frame after which a camera or URL is given up.
        open_capture: What opens a source; OpenCV's VideoCapture.

    Raises:
        MissingExtraError: there is no OpenCV.
        ImageReadError: while frames are read: the source cannot be opened, is a file without a frame, or is gone for longer
            than `patience`. What else a capture raises is raised there too; an error of OpenCV from a camera or URL counts as a
            source that dropped out.
    """

    def __init__(self, source: str, *, patience: float = 30.0, open_capture: Callable[[Any], Any] | None = None) -> None:
        self.source = source
        url = "://" in source and not source.startswith("file://")
        self.live = url or source.isdecimal() or source.startswith("/dev/") or " ! " in source
        self.patience = patience
        self._cv2 = import_extra("cv2", "stream")
        self._open = open_capture or self._cv2.VideoCapture
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._count = 0
        self._last = 0.0
        self._ended = False
        self._error: Exception | None = None
        self._reader: _Reader | None = None

    def __iter__(self) -> Iterator[Frame]:
        return self._newest_frames() if self.live else self._all_frames()

    @property
    def rate(self) -> float:
        """Frames per second to show them at: a file's own; 10 if unknown, or of a camera or URL, whose frames are skipped."""
        if self.live:
            return DEFAULT_RATE
        capture = self._open(self.source)
        try:
            rate = round(float(capture.get(self._cv2.CAP_PROP_FPS)), 2)  # as finely as every codec takes it
        finally:
            capture.release()
        return rate if 0 < rate < math.inf else DEFAULT_RATE

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._reader is not None:
            self._reader.thread.join(timeout=5)

    def _all_frames(self) -> Iterator[Frame]:
        rate = self.rate
        capture = self._open(self.source)
        try:
            if not capture.isOpened():
                raise ImageReadError(f"{self.source} cannot be opened as a video: check the path, or convert it to MP4.")
            number, last = 0, -math.inf
            while not self._ended:
                found, image = capture.read()
                if not found:
                    break
                # Formats without times say 0 for every frame, and then the rate has to tell.
                told = float(capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1000
                seconds = told if told > last and math.isfinite(told) else number / rate
                last = seconds = max(seconds, last)
                yield Frame(number, seconds, image)
                number += 1
        finally:
            capture.release()
        if number == 0 and not self._ended:
            raise ImageReadError(f"{self.source} has no frame that OpenCV can read: convert it to MP4.")

    def _newest_frames(self) -> Iterator[Frame]:
        self._last = time.monotonic()
        self._reader = _Reader(self)
        try:
            while True:
                newest = self._take()
                if newest is not None:
                    yield newest
                elif self._error is not None:
                    raise self._error
                elif self._ended:
                    return
                elif time.monotonic() - self._last > self.patience:
                    raise ImageReadError(
                        f"{self.source} gave no frame for {self.patience:g} s: check the camera and its cable."
                    )
                elif self._reader.silence() > self.patience / 3:
                    self._reader = _Reader(self)
        finally:
            with self._changed:
                self._ended = True

    def _take(self) -> Frame | None:
        """Return the newest frame, or None if there is none for a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended, timeout=min(1.0, self.patience / 10))
            newest, self._newest = self._newest, None
            return newest

    def store(self, reader: "_Reader", image: NDArray[np.uint8]) -> None:
        """Keep a frame for whoever takes the next, unless it comes from a reader that has been replaced."""
        with self._changed:
            if reader is self._reader:
                self._last = time.monotonic()
                self._newest = Frame(self._count, time.time(), image)
                self._count += 1
                self._changed.notify_all()

    def fail(self, reader: "_Reader", error: Exception) -> None:
        """End with an error, unless it comes from a reader that has been replaced."""
        with self._changed:
            if reader is self._reader:
                self._error, self._ended = error, True
                self._changed.notify_all()

    def wanted(self, reader: "_Reader") -> bool:
        return not self._ended and reader is self._reader


class _Reader:
    """A thread that reads a camera until it is replaced or nobody wants frames any more."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._asked = time.monotonic()
        frames._reader = self
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def silence(self) -> float:
        """Return for how many seconds the camera has not answered."""
        return time.monotonic() - self._asked

    def _run(self) -> None:
        try:
            while self._frames.wanted(self):
                with suppress(self._frames._cv2.error):  # as where there is no frame
                    self._read()
                time.sleep(min(1.0, self._frames.patience / 10))
                self._asked = time.monotonic()
        except Exception as e:
            self._frames.fail(self, e)

    def _read(self) -> None:
        """Read until there is no frame."""
        frames = self._frames
        capture = frames._open(int(frames.source) if frames.source.isdecimal() else frames.source)
        try:
            while frames.wanted(self) and capture.isOpened():
                self._asked = time.monotonic()
                found, image = capture.read()
                if not found:
                    return
                frames.store(self, image)
        finally:
            capture.release()
