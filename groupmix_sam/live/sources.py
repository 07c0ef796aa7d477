"""Frames of cameras, streams and video files."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageReadError, import_extra
from ..images import as_rgb

__all__ = ["Frame", "Frames"]

# Frames per second of an overlay where nothing says how many there are.
DEFAULT_RATE = 10.0
# A file that says more was recorded by a browser, WebM for the most part: 1000 are the ticks of its clock in a second.
MOST_RATE = 240.0
# Frames per second of an overlay of such a file.
RECORDED_RATE = 30.0
# Damaged frames in a row behind which others are looked for: OpenCV says of them what it says at the end.
REFUSED = 100
# Of OpenCV's backends those that take URLs.
URL_BACKENDS = ("CAP_FFMPEG", "CAP_GSTREAMER", "CAP_MSMF", "CAP_AVFOUNDATION")


class Frame(NamedTuple):
    """A frame: its number from 0, its time in seconds and its pixels, H x W x 3, BGR, uint8.

    A video's times count from its start, as the file has them, and a number is a frame's position in it. A camera's times are
    those of the clock (since 1970), when the frame was read.
    """

    number: int
    time: float
    image: NDArray[np.uint8]


class Frames:
    """The frames of a video, all of them, or of a camera, the newest only; a URL is a video if it has a number of frames.

    A video that ends early, or has frames that cannot be decoded, raises an error after the last one that can. Their numbers
    are left out, where the frames' times are even and tell of them, as in MP4, MKV and WebM. A browser's recording does not say
    how many frames it has: one that is cut short ends without an error.

    A camera that drops out is opened again until `patience` is over. So is one that does not answer: its thread is left
    behind, and a fresh one opens it anew after a third of `patience`. One frame is held at a time: those that arrive while one
    is worked on replace each other, and their numbers are skipped. A video that says how it is rotated comes upright.

    Args:
        source: A camera's index as "0" or its device as "/dev/video0", a URL such as "rtsp://..." or "https://...", a GStreamer
            pipeline, whose elements are joined by " ! " and which an OpenCV with GStreamer opens, or a file, by path or
            "file://...". Gray frames and those of 16 bits are converted.
        patience: Seconds without a frame after which a camera is given up.
        open_capture: What opens a source; OpenCV's VideoCapture.

    Raises:
        MissingExtraError: there is no OpenCV.
        ImageReadError: while frames are read: the source cannot be opened, is a video without a frame or of which frames are
            missing, or is gone for longer than `patience`. What else a capture raises is raised there too; an error of OpenCV
            from a camera counts as a source that dropped out.
    """

    def __init__(self, source: str, *, patience: float = 30.0, open_capture: Callable[[Any], Any] | None = None) -> None:
        self.source = source
        self.patience = patience
        self._cv2 = import_extra("cv2", "stream")
        self._open = open_capture or self._open_capture
        self._live = _is_camera(source)
        self._capture: Any = None
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
    def live(self) -> bool:
        """Whether it is a camera. A URL is opened to tell; one that does not answer is taken for a camera."""
        if self._live is None:
            self._start()
            with self._changed:
                self._changed.wait_for(lambda: self._live is not None or self._ended, timeout=self.patience / 3)
                if self._live is None:
                    self._live = True
        return self._live

    @property
    def rate(self) -> float:
        """Frames per second to show them at: a video's own, or 30 of a browser's recording, which says none.

        10 if unknown, or of a camera, whose frames are skipped.
        """
        if self.live:
            return DEFAULT_RATE
        rate = round(float(self._opened().get(self._cv2.CAP_PROP_FPS)), 2)  # as finely as every codec takes it
        if MOST_RATE < rate < math.inf:
            return RECORDED_RATE
        return rate if 0 < rate < math.inf else DEFAULT_RATE

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._reader is not None:
            self._reader.thread.join(timeout=5)

    def _open_capture(self, source: int | str) -> Any:
        """Open a source; a URL not as a pattern of images' names, whose error would print its password."""
        cv2 = self._cv2
        if isinstance(source, int) or "://" not in source or " ! " in source:
            return cv2.VideoCapture(source)
        capture = cv2.VideoCapture()
        there = cv2.videoio_registry.getStreamBackends()
        for backend in (getattr(cv2, name) for name in URL_BACKENDS):
            if backend in there and capture.open(source, backend):
                break
        return capture

    def _opened(self) -> Any:
        """Return the video's capture, before its first frame."""
        if self._capture is None:
            self._capture = self._open(self.source)
        return self._capture

    def _all_frames(self) -> Iterator[Frame]:
        rate = self.rate
        capture = self._opened()
        self._capture = None
        try:
            if not capture.isOpened():
                raise ImageReadError(f"{self.source} cannot be opened as a video: check the path, or convert it to MP4.")
            exact_rate, total = (float(capture.get(key)) for key in (self._cv2.CAP_PROP_FPS, self._cv2.CAP_PROP_FRAME_COUNT))
            # The number of frames that OpenCV works out from a clock's ticks is one of ticks.
            even = not exact_rate > MOST_RATE
            total = total if math.isfinite(total) and even else 0.0
            number, read, last = -1, 0, -math.inf
            while not self._ended:
                found, image = _read_next(capture, int(min(total - number - 1, REFUSED)))
                if not found:
                    break
                told = float(capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1000
                number += 1
                # Decoders leave out what is damaged. Where all times so far are multiples of the rate, they tell.
                position = told * exact_rate if math.isfinite(told * exact_rate) else -1.0
                even = even and abs(position - round(position)) < 0.25 and number <= round(position) < total
                if even:
                    number = round(position)
                # Formats without times say 0 for every frame, and then the rate has to tell.
                seconds = told if told > last and math.isfinite(told) else number / rate
                last = seconds = max(seconds, last)
                yield Frame(number, seconds, _as_bgr(image))
                read += 1
        finally:
            capture.release()
        if self._ended:
            return
        if read == 0:
            raise ImageReadError(f"{self.source} has no frame that OpenCV can read: convert it to MP4.")
        # Of some formats the number of frames is worked out from the duration, and may be one too many. Others have it: a frame
        # that a phone did not record is not among them, though the times leave room for it.
        if total > read + (number < read):
            count = max(int(total), number + 1)
            raise ImageReadError(
                f"{count - read} of {count} frames of {self.source} are missing, it is truncated or damaged: copy or record it "
                "again. Those that could be read were used."
            )

    def _start(self) -> None:
        """Have a camera read, or what may be one."""
        if self._reader is None:
            self._last = time.monotonic()
            self._reader = _Reader(self)

    def _newest_frames(self) -> Iterator[Frame]:
        self._start()
        assert self._reader is not None
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

    def is_video(self, reader: "_Reader", capture: Any) -> bool:
        """Return whether a reader has opened a video, which is taken over from it then."""
        if self._live is not None:
            return False
        count = float(capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        with self._changed:
            if reader is self._reader and self._live is None:
                self._live = not 0 < count < math.inf
                self._capture = None if self._live else capture
                self._changed.notify_all()
            return self._capture is capture

    def wanted(self, reader: "_Reader") -> bool:
        return not self._ended and reader is self._reader and self._live is not False


def _is_camera(source: str) -> bool | None:
    """Return whether a source is a camera, and None of a URL, which has to be opened to tell."""
    if source.isdecimal() or " ! " in source:
        return True
    if "://" in source:
        return False if source.startswith("file://") else None
    path = Path(source)
    unplugged = path.parts[1:2] == ("dev",) and path.parts[2:3] != ("shm",) and not path.exists()
    return unplugged or path.is_char_device()


def _as_bgr(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a frame as H x W x 3, BGR; those of GStreamer may be gray, of 16 bits, or have a fourth channel."""
    return image if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 else as_rgb(image)


def _read_next(capture: Any, refused: int) -> Any:
    """Return what `capture.read` does, of a frame behind at most so many damaged ones."""
    found, image = capture.read()
    while not found and refused > 0:
        found, image = capture.read()
        refused -= 1
    return found, image


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
        if capture.isOpened() and frames.is_video(self, capture):
            return
        try:
            while frames.wanted(self) and capture.isOpened():
                self._asked = time.monotonic()
                found, image = capture.read()
                if not found:
                    return
                frames.store(self, _as_bgr(image))
        finally:
            capture.release()
