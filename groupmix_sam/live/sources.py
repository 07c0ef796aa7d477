"""Frames of cameras, streams and video files."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageReadError, import_extra

__all__ = ["Frames"]

Frame = NDArray[np.uint8]
# Frames per second of an overlay where nothing says how many there are.
DEFAULT_RATE = 10.0


class Frames:
    """The frames of a video file, all of them, or of a camera or a URL, the newest only; B x G x R, uint8.

    A camera or URL that drops out is opened again until `patience` is over. One frame is held at a time: those that arrive
    while one is worked on replace each other, and their numbers are skipped.

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
        self._newest: tuple[int, Frame] | None = None
        self._ended = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[tuple[int, Frame]]:
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
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _all_frames(self) -> Iterator[tuple[int, Frame]]:
        capture = self._open(self.source)
        try:
            if not capture.isOpened():
                raise ImageReadError(f"{self.source} cannot be opened as a video: check the path, or convert it to MP4.")
            number = 0
            while not self._ended:
                found, frame = capture.read()
                if not found:
                    break
                yield number, frame
                number += 1
        finally:
            capture.release()
        if number == 0 and not self._ended:
            raise ImageReadError(f"{self.source} has no frame that OpenCV can read: convert it to MP4.")

    def _newest_frames(self) -> Iterator[tuple[int, Frame]]:
        self._thread = threading.Thread(target=self._keep_reading, daemon=True)
        self._thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended)
                newest, self._newest = self._newest, None
            if newest is not None:
                yield newest
            elif self._error is not None:
                raise self._error
            else:
                return

    def _keep_reading(self) -> None:
        """Read until closed, given up or broken; the error is raised where frames are taken."""
        try:
            self._read_newest()
        except Exception as e:
            self._error = e
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read_newest(self) -> None:
        number, last = 0, time.monotonic()
        while not self._ended:
            with suppress(self._cv2.error):  # as where there is no frame
                capture = self._open(int(self.source) if self.source.isdecimal() else self.source)
                try:
                    while not self._ended and capture.isOpened():
                        found, frame = capture.read()
                        if not found:
                            break
                        last = time.monotonic()
                        with self._changed:
                            self._newest = number, frame
                            self._changed.notify_all()
                        number += 1
                finally:
                    capture.release()
            if time.monotonic() - last > self.patience:
                raise ImageReadError(f"{self.source} gave no frame for {self.patience:g} s: check the camera and its cable.")
            time.sleep(min(1.0, self.patience / 10))
