"""Masks of what a camera sees, for as long as it runs: frames in, the newest first; masks, times and overlays out."""

import json
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..annotations import encode_rle
from ..errors import ImageReadError, InvalidInputError, SaveError
from ..extras import import_extra
from ..images import draw_masks
from ..prompts import EVERY, read_prompts
from .predictor import Predictor

__all__ = ["Clock", "Frames", "MaskFile", "Overlay", "Prompts", "Result", "stream"]

Frame = NDArray[np.uint8]

# Frames per second of an overlay where nothing says how many there are.
DEFAULT_RATE = 10.0


class Prompts(NamedTuple):
    """What to segment, in pixels: P boxes, P x 4, and points, P x N x 2 with labels P x N; either may be None."""

    boxes: NDArray[np.float64] | None = None
    points: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> "Prompts":
        """Read prompts for every frame: JSON, `boxes`, P x 4, or `points`, P x N x 2, with `labels`, P x N, or both.

        Prompts of fewer points than others are filled up with points that are none, label -1, as SAM fills up its own.
        """
        prompts = read_prompts(path).get(EVERY, [])
        boxes = [prompt.box for prompt in prompts if prompt.box is not None]
        if not prompts or len(boxes) not in (0, len(prompts)):
            raise InvalidInputError(f'{path} holds no prompts for all frames: write {{"boxes": [[left, top, right, bottom]]}}.')
        most = max(len(prompt.points) for prompt in prompts)
        points = np.array([prompt.points + [[0, 0]] * (most - len(prompt.points)) for prompt in prompts], dtype=np.float64)
        labels = np.array([prompt.labels + [-1] * (most - len(prompt.labels)) for prompt in prompts])
        return cls(np.array(boxes) if boxes else None, *((points, labels) if most else (None, None)))


class Result(NamedTuple):
    """A frame's number from 0, the frame (BGR), its masks, P x H x W, their predicted IoUs, P, and the seconds it took."""

    number: int
    frame: Frame
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    seconds: float


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


def stream(predictor: Predictor, frames: Frames, prompts: Prompts | Callable[[int, Frame], Prompts | None]) -> Iterator[Result]:
    """Yield the masks of each frame that is not skipped: of each prompt the one that `segment` takes.

    Args:
        predictor: The model.
        frames: Where frames come from; closed in the end.
        prompts: The same for all frames, or a function of a frame's number and the frame that returns them, or None to leave
            the frame out.

    Raises:
        ImageReadError: of `frames`.
        InvalidInputError: a prompt that cannot be used, such as a point outside the frame or a reversed box.
    """
    try:
        for number, frame in frames:
            start = time.perf_counter()
            wanted = prompts(number, frame) if callable(prompts) else prompts
            if wanted is None:
                continue
            predictor.set_image(frame, "BGR")
            masks, scores = predictor.predict_best(wanted.points, wanted.labels, wanted.boxes)
            yield Result(number, frame, masks, scores, time.perf_counter() - start)
    finally:
        frames.close()


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
