"""The logic of the Video tab: an object in a clip's first frame, and the object followed."""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageReadError
from ..inference import Predictor
from ..live import Frames, MaskFile, Overlay, PartialPredictor, Result, Tracker, track
from ..masks import Mask
from ..visualize import draw_masks
from .session import SHOWN_SIDE, Demo, Session

__all__ = ["Clip", "Step"]

# Seconds between two frames that the page shows: a browser needs no more, and drawing takes time.
SHOW_EVERY = 0.15
# Frames over which the rate is taken.
RATE_FRAMES = 20


class Step(NamedTuple):
    """What the page shows of a frame: H x W x 3, RGB, with the mask, and a line about it."""

    image: NDArray[np.uint8]
    text: str


class Clip:
    """A visitor's video.

    Attributes:
        path: The file.
        stopped: Set by the visitor to end `follow`.
        discarded: Whether the page shows something else by now, and nothing of `follow`.
        followed: Whether `follow` is at work.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stopped = self.discarded = self.followed = False

    def discard(self) -> None:
        """End `follow`, if it is at work: the page shows something else."""
        self.stopped = self.discarded = True

    def first_frame(self) -> Session:
        """Return a session with the first frame. Errors name the file without its folder.

        Raises:
            ImageReadError: it has no frame.
        """
        frames = Frames(str(self.path))
        try:
            for frame in frames:
                return Session.of(np.ascontiguousarray(frame.image[:, :, ::-1]))
        except ImageReadError:
            pass
        finally:
            frames.close()
        raise ImageReadError(f"{self.path.name} cannot be read as a video: convert it to MP4.")

    def follow(self, demo: Demo, session: Session, mask: Mask, fixed_camera: bool, folder: Path) -> Iterator[Step]:
        """Follow an object of the first frame to the end of the clip, or until it is stopped; yield some of the frames.

        Masks are written to masks.jsonl and the video to overlay.mp4; both are whole when it ends.

        Args:
            demo: The models.
            session: The first frame's, and the name of the model.
            mask: The object in the first frame.
            fixed_camera: Encode only what moves.
            folder: Where the files are written.

        Raises:
            InvalidInputError: the model cannot encode parts.
            ImageReadError: after the last frame, if some of the clip could not be read.
        """
        self.stopped = self.discarded = False
        self.followed = True
        try:
            yield from self._follow(demo, session, mask, fixed_camera, folder)
        finally:
            self.followed = False

    def _follow(self, demo: Demo, session: Session, mask: Mask, fixed_camera: bool, folder: Path) -> Iterator[Step]:
        assert session.image is not None
        predictor = cast(Predictor, demo.predictor(session.model))
        partial = PartialPredictor(predictor) if fixed_camera else None
        tracker, frames = Tracker(partial or predictor), Frames(str(self.path))
        shares, seconds, shown = 0.0, deque[float](maxlen=RATE_FRAMES), 0.0
        waiting: Result | None = None  # the latest frame, if it was not shown
        with MaskFile(folder / "masks.jsonl") as masks, Overlay(folder / "overlay.mp4", frames.rate) as overlay:
            with demo.lock(session.model):
                tracker.start(session.image, masks=[mask])
            results = track(tracker, frames)
            while not self.stopped:
                try:
                    with demo.lock(session.model):  # a frame at a time: others click meanwhile
                        result = next(results, None)
                except ImageReadError as e:
                    raise ImageReadError(str(e).replace(str(self.path), self.path.name)) from e
                if result is None:
                    break
                masks.write(result)
                overlay.write(result)
                seconds.append(result.seconds)
                shares += 1.0 if partial is None else partial.share
                waiting = result
                if time.monotonic() - shown > SHOW_EVERY:
                    shown, waiting = time.monotonic(), None
                    yield _step(result, seconds, shares)
            frames.close()
        if waiting is not None:
            yield _step(waiting, seconds, shares)


def _step(result: Result, seconds: deque[float], shares: float) -> Step:
    assert result.objects is not None
    (item,) = result.objects
    image = Image.fromarray(np.ascontiguousarray(result.frame[:, :, ::-1]))
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    masks = [np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)) for mask in result.masks]
    text = (
        f"Frame {result.number + 1}: **{item.state}**, {len(seconds) / sum(seconds):.1f} frames/s, "
        f"{100 * shares / (result.number + 1):.0f} % of the pixels encoded."
    )
    return Step(np.asarray(draw_masks(np.asarray(image), masks)), text)
