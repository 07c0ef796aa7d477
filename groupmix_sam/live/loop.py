"""Masks of what a camera sees, for as long as it runs: frames in, the newest first; masks, times and overlays out."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import import_extra
from ..inference.predictor import Predictor
from ..prompts import Prompt, stack_prompts
from .partial import PartialPredictor
from .sources import Frames
from .tracker import TrackedObject, Tracker

__all__ = ["Result", "stream", "track"]


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
    prompts: Sequence[Prompt] | Callable[[int, NDArray[np.uint8]], Sequence[Prompt] | None],
) -> Iterator[Result]:
    """Yield the masks of each frame that is not skipped: of each prompt the one that `segment` takes.

    Args:
        predictor: The model.
        frames: Where frames come from; closed in the end.
        prompts: The same for all frames, or a function of a frame's number and the frame that returns them, or None to leave
            the frame out; of none, such as of a detector that finds nothing, the frame comes without masks. All have a box, or
            none has.

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
            if len(wanted) or not callable(prompts):
                predictor.set_image(frame, "BGR")
                masks, scores = predictor.predict_single_mask(*stack_prompts(wanted))
            else:
                masks, scores = np.zeros((0, *frame.shape[:2]), dtype=bool), np.zeros(0, dtype=np.float32)
            yield Result(number, moment, frame, masks, scores, time.perf_counter() - start)
    finally:
        frames.close()


def track(tracker: Tracker, frames: Frames, prompts: Sequence[Prompt] | None = None) -> Iterator[Result]:
    """Yield the objects that prompts mean in the first frame, in each frame that is not skipped.

    Args:
        tracker: What follows them.
        frames: Where frames come from; closed in the end.
        prompts: About the first frame; None if the tracker was started already.

    Raises:
        ImageReadError: of `frames`.
        InvalidInputError: a prompt that cannot be used, or one without an object under it.
    """
    cv2 = import_extra("cv2", "stream")
    try:
        for number, moment, frame in frames:
            start = time.perf_counter()
            image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # NumPy takes 4 ms for a frame of 1280 x 720
            if prompts is not None:
                points, labels, boxes = stack_prompts(prompts)
                tracker.start(image, boxes=boxes, points=points, labels=labels)
                prompts = None
            objects = tracker.update(image)
            seen = [item for item in objects if item.mask is not None]
            masks = np.array([item.mask for item in seen]).reshape(-1, *image.shape[:2]).astype(bool)
            scores = np.array([item.score for item in seen], dtype=np.float32)
            yield Result(number, moment, frame, masks, scores, time.perf_counter() - start, objects)
    finally:
        frames.close()
