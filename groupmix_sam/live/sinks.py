"""What a live run writes: masks, overlays and its rate."""

import json
import os
import time
from collections import deque
from contextlib import suppress
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InvalidInputError, SaveError, import_extra
from ..files import make_folder, write_beside
from ..masks import Mask, encode_rle, mask_window, tight_box
from ..visualize import draw_masks
from .loop import Result
from .sources import DEFAULT_RATE
from .tracker import TrackedObject

__all__ = ["Clock", "CocoVideo", "Crops", "MaskFile", "Overlay"]

# Seconds for which an overlay shows one frame at most, and by which it may run ahead of the frames' times.
MOST_PAUSE, MOST_LEAD = 2.0, 1.0
# How every line of a mask file begins.
RECORD = b'{"frame": '


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


class MaskFile:
    """Masks as JSON, a line a frame: its number, time, seconds, scores and COCO's compressed run lengths.

    Lines are added to the file, and each is on the disk before the next frame: it can be followed while it grows, and a power
    cut costs one line. A line of ours that a power cut left unfinished is cut off when the file is opened again.

    Raises:
        InvalidInputError: there is no such folder.
        SaveError: it cannot be written.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = _checked(path)
        try:
            self._file = self.path.open("a+b")
            _end_with_a_line(self._file)
        except OSError as e:
            raise SaveError(f"{self.path} cannot be written ({e}): give a file in a folder of yours.") from e

    def __enter__(self) -> "MaskFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # what a full disk did not take, which has been told of
            self._file.close()

    def write(self, result: Result) -> None:
        """Add a frame."""
        record: dict[str, Any] = {
            "frame": result.number,
            "time": round(result.time, 3),
            "seconds": round(result.seconds, 4),
        }
        if result.objects is None:
            record["scores"] = [round(float(score), 4) for score in result.scores]
            record["masks"] = [encode_rle(mask) for mask in result.masks]
        else:
            record["objects"] = [_object_record(item) for item in result.objects]
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()  # so that a disk that is full is told of here
            os.fsync(self._file.fileno())
        except OSError as e:
            raise SaveError(f"{self.path} cannot be written ({e}): free some space; the frames before are kept.") from e


class CocoVideo:
    """Annotations of a video in COCO's format for videos, which is YouTube-VIS's: a list a track, null where it is not seen.

    A track is an object that is followed, or one of the prompts. The file is written when closed, also after an error. Until
    then the masks' run lengths are held, a few hundred bytes each: for a stream without an end take `MaskFile`.

    Raises:
        InvalidInputError: there is no such folder.
        SaveError: it cannot be written.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = _checked(path)
        self._size = (0, 0)
        self._names: list[str] = []
        # Of each track, by the index of the frame.
        self._tracks: dict[int, dict[int, dict[str, Any]]] = {}

    def __enter__(self) -> "CocoVideo":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._names:
            write_beside(self.path, lambda part: part.write_text(json.dumps(self._content())))

    def write(self, result: Result) -> None:
        """Add a frame."""
        self._size = result.frame.shape[0], result.frame.shape[1]
        for number, mask in _tracks_of(result).items():
            x0, y0, x1, y1 = tight_box(mask).tolist()
            self._tracks.setdefault(number, {})[len(self._names)] = {
                "segmentations": encode_rle(mask),
                "bboxes": [x0, y0, x1 - x0, y1 - y0],
                "areas": int(np.count_nonzero(mask)),
            }
        self._names.append(f"{result.number:06d}.jpg")

    def _content(self) -> dict[str, Any]:
        height, width = self._size
        length = len(self._names)
        annotations = [
            {"id": i, "video_id": 1, "category_id": 1, "track_id": number, "iscrowd": 0, "width": width, "height": height}
            | {
                key: [seen[frame][key] if frame in seen else None for frame in range(length)]
                for key in ("segmentations", "bboxes", "areas")
            }
            for i, (number, seen) in enumerate(sorted(self._tracks.items()), 1)
        ]
        video = {"id": 1, "width": width, "height": height, "length": length, "file_names": self._names}
        return {"videos": [video], "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


class Crops:
    """Each object cut out of each frame, transparent around its mask: FOLDER/ID/FRAME.png.

    Raises:
        SaveError: the folder cannot be made, or an image cannot be written.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        make_folder(self.folder)

    def __enter__(self) -> "Crops":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def write(self, result: Result) -> None:
        """Add a frame."""
        for number, mask in _tracks_of(result).items():
            window = mask_window(mask)
            assert window is not None
            make_folder(self.folder / str(number))
            crop = Image.fromarray(np.dstack([result.frame[window][:, :, ::-1], 255 * mask[window].astype(np.uint8)]))
            path = self.folder / str(number) / f"{result.number:06d}.png"
            write_beside(path, partial(crop.save, format="PNG", compress_level=1))


class Overlay:
    """A video, MP4 or AVI, of the frames with their masks drawn over them, at the speed of their times.

    A frame is repeated until the next one is due, and left out where more come than the video has frames, as of a fast camera.
    One of another size than the first is fitted into that. The video is written beside its name and takes it when closed, also
    after an error. Where no frame was written, or the disk was full, a file of that name stays as it was.

    Raises:
        InvalidInputError: there is no such folder, or OpenCV cannot write such a file.
        SaveError: when closed: the disk was full.
    """

    def __init__(self, path: str | PathLike[str], frames_per_second: float = DEFAULT_RATE) -> None:
        self.path = _checked(path)
        self._cv2 = import_extra("cv2", "stream")
        self._codec = {".mp4": "mp4v", ".avi": "MJPG"}.get(self.path.suffix.lower(), "")
        if not self._codec:
            raise InvalidInputError(f"cannot write {self.path}: give a name that ends in .mp4 or .avi.")
        self._part = self.path.with_name(f".{os.getpid()}.part.{self.path.name}")
        self._rate = frames_per_second
        self._writer: Any = None
        self._size = (0, 0)
        # When the video would have begun without such pauses, the time of the last frame, and the frames written.
        self._start = self._last = 0.0
        self._count = 0

    def __enter__(self) -> "Overlay":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.release()
        # OpenCV raises no error where a disk is full: what says how many frames there are is written last, and is not there.
        whole = self._count > 0 and self._cv2.VideoCapture(str(self._part)).get(self._cv2.CAP_PROP_FRAME_COUNT) > 0
        if whole:
            os.replace(self._part, self.path)
        else:
            self._part.unlink(missing_ok=True)
        if self._count and not whole and error is None:
            raise SaveError(f"{self.path} could not be written: free some space, or leave the overlay out.")

    def write(self, result: Result) -> None:
        """Add a frame."""
        due = self._due(result.time)
        if due < -MOST_LEAD * self._rate:
            return
        image = np.asarray(draw_masks(result.frame[:, :, ::-1], list(result.masks)))[:, :, ::-1]
        if self._writer is None:
            self._size = (image.shape[1], image.shape[0])
            codec = self._cv2.VideoWriter.fourcc(*self._codec)
            self._writer = self._cv2.VideoWriter(str(self._part), codec, self._rate, self._size)
            if not self._writer.isOpened():
                raise InvalidInputError(f"OpenCV cannot write {self.path}: give a name that ends in .avi.")
        image = self._fit(image)
        for _ in range(max(1, due)):  # frames that come unevenly are all in the video
            self._writer.write(image)
            self._count += 1

    def _due(self, moment: float) -> int:
        """Return how often to write a frame of that time, for the video to be as long as the frames' times."""
        due = round((moment - self._start) * self._rate) + 1 - self._count
        most = max(1, round(MOST_PAUSE * self._rate))
        # The first frame; a camera that was away for long, which leaves a short pause; a clock that was set back.
        if not self._count or due > most or moment < self._last:
            due = most if self._count and due > most else 1
            self._start = moment - (self._count + due - 1) / self._rate
        self._last = moment
        return due

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the frame in the size of the video, whole, with black where it has another shape."""
        width, height = self._size
        if image.shape[:2] == (height, width):
            return image
        scale = min(width / image.shape[1], height / image.shape[0])
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        out = np.zeros((height, width, 3), np.uint8)
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        out[top : top + size[1], left : left + size[0]] = self._cv2.resize(
            np.ascontiguousarray(image), size, interpolation=self._cv2.INTER_AREA
        )
        return out


def _checked(path: str | PathLike[str]) -> Path:
    """Return a path that a file may have; raise InvalidInputError if not."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidInputError(f"cannot write {path}: give a file in a folder that exists.")
    return path


def _end_with_a_line(file: BinaryIO) -> None:
    """Cut off a record that a power cut left unfinished; give anything else that has no end one."""
    end = start = file.seek(0, os.SEEK_END)
    tail = b""
    while start and b"\n" not in tail:
        start = max(0, start - (1 << 16))
        file.seek(start)
        tail = file.read(end - start)
    rest = tail.rpartition(b"\n")[2]
    if rest.startswith(RECORD):
        file.truncate(end - len(rest))
    elif rest:
        file.write(b"\n")


def _tracks_of(result: Result) -> dict[int, Mask]:
    """Return the masks in which something is seen, by the object's id, or the number of the prompt."""
    if result.objects is None:
        return {number: mask for number, mask in enumerate(result.masks) if mask.any()}
    return {item.id: item.mask for item in result.objects if item.mask is not None and item.mask.any()}


def _object_record(item: TrackedObject) -> dict[str, Any]:
    return {
        "id": item.id,
        "state": item.state,
        "score": round(item.score, 4),
        "box": None if item.box is None else [round(float(side), 1) for side in item.box],
        "mask": None if item.mask is None else encode_rle(item.mask),
    }
