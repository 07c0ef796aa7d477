"""Masks of what a camera sees, for as long as it runs: frames in, the newest first; masks, times and overlays out."""

import time
from collections.abc import Callable, Iterator
from os import PathLike
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..inference.predictor import Predictor
from ..prompts import EVERY, read_prompts
from .partial import PartialPredictor
from .sources import Frames
from .tracker import TrackedObject, Tracker

__all__ = ["Prompts", "Result", "stream", "track"]


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
    """A frame with its number from 0 and its time in seconds, its masks and the seconds that they took.

    `frame` is H x W x 3, BGR. `masks` is P x H x W and `scores`, their predicted IoUs, P. Of objects that are followed, masks
    and scores are those that are seen, and `objects` says which.
    """

    number: int
    time: float
    frame: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    seconds: float
    objects: list[TrackedObject] | None = None


def stream(
    predictor: Predictor | PartialPredictor,
    frames: Frames,
    prompts: Prompts | Callable[[int, NDArray[np.uint8]], Prompts | None],
) -> Iterator[Result]:
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
        for number, moment, frame in frames:
            start = time.perf_counter()
            wanted = prompts(number, frame) if callable(prompts) else prompts
            if wanted is None:
                continue
            predictor.set_image(frame, "BGR")
            masks, scores = predictor.predict_single_mask(wanted.points, wanted.labels, wanted.boxes)
            yield Result(number, moment, frame, masks, scores, time.perf_counter() - start)
    finally:
        frames.close()


def track(tracker: Tracker, frames: Frames, prompts: Prompts) -> Iterator[Result]:
    """Yield the objects that prompts mean in the first frame, in each frame that is not skipped.

    Args:
        tracker: What follows them.
        frames: Where frames come from; closed in the end.
        prompts: About the first frame.

    Raises:
        ImageReadError: of `frames`.
        InvalidInputError: a prompt that cannot be used, or one without an object under it.
    """
    started = False
    try:
        for number, moment, frame in frames:
            start = time.perf_counter()
            image = np.ascontiguousarray(frame[:, :, ::-1])
            if not started:
                tracker.start(image, boxes=prompts.boxes, points=prompts.points, labels=prompts.labels)
                started = True
            objects = tracker.update(image)
            seen = [item for item in objects if item.mask is not None]
            masks = np.array([item.mask for item in seen]).reshape(-1, *image.shape[:2]).astype(bool)
            scores = np.array([item.score for item in seen], dtype=np.float32)
            yield Result(number, moment, frame, masks, scores, time.perf_counter() - start, objects)
    finally:
        frames.close()
