"""Objects followed through videos, against labels: DAVIS's semi-supervised J and F.

A dataset has the layout of DAVIS 2016 and 2017: `JPEGImages/480p/NAME/00000.jpg` and `Annotations/480p/NAME/00000.png`. An
annotation holds an object a value, or a single object as 255. The first frame says what to follow; the first and the last one
do not count (Perazzi et al., CVPR 2016; Pont-Tuset et al., arXiv 1704.00675).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InvalidInputError, UnknownNameError, import_extra
from ..images import read_image
from ..live.loop import Result
from ..live.sinks import Overlay
from ..live.tracker import ImagePredictor, Tracker
from ..masks import mask_iou, tight_box
from .metrics import innermost_pixel

__all__ = ["FOLLOWERS", "STARTS", "SequenceScore", "VideoDataset", "contour_accuracy", "evaluate_video", "video_table"]

Mask = NDArray[np.bool_]
Features = NDArray[np.float32]
# Contours match within this share of the image's diagonal.
TOLERANCE = 0.008
# What the first frame's objects are told by.
STARTS = ("mask", "box", "point")
# Frames per second of DAVIS's videos.
RATE = 24.0
# A value for pixels that belong to nothing in particular.
VOID = 255


def contour_accuracy(mask: Mask, truth: Mask) -> float:
    """Return DAVIS's F: the harmonic mean of precision and recall of a mask's contour, within 0.8 % of the diagonal.

    Args:
        mask: H x W.
        truth: H x W.

    Raises:
        MissingExtraError: there is no OpenCV.
    """
    cv2 = import_extra("cv2", "stream")
    radius = math.ceil(TOLERANCE * math.hypot(*mask.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    found, true = contour(mask), contour(truth)
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    near_true, near_found = (cv2.dilate(edge.astype(np.uint8), disk).astype(bool) for edge in (true, found))
    precision, recall = float(near_true[found].mean()), float(near_found[true].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Mask) -> Mask:
    """Return the pixels that differ from the next one to the right, below, or both."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    return (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])


class VideoDataset:
    """Sequences of frames with the masks of their objects.

    Args:
        folder: What holds `JPEGImages` and `Annotations`.
        names: The sequences; by default all that have annotations.

    Raises:
        InvalidInputError: there is no sequence in the folder.
        UnknownNameError: there is no such sequence.
    """

    def __init__(self, folder: str | PathLike[str], names: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        found = [path.name for path in sorted((self.folder / "Annotations" / "480p").glob("*")) if path.is_dir()]
        if not found:
            raise InvalidInputError(f"{folder} has no Annotations/480p with a folder a sequence: give DAVIS's own folder.")
        for name in names or ():
            if name not in found:
                raise UnknownNameError.near("sequence", name, found)
        self.names = list(names or found)

    def frames(self, name: str) -> list[Path]:
        """Return the paths of a sequence's frames, in order."""
        frames = sorted((self.folder / "JPEGImages" / "480p" / name).glob("*.jpg"))
        if len(frames) < 3:
            raise InvalidInputError(
                f"the sequence {name} has {len(frames)} frames: 3 are needed, as the outer two do not count."
            )
        return frames

    def truths(self, name: str, frame: Path) -> dict[int, Mask]:
        """Return the masks of the objects in a frame, by their values."""
        path = self.folder / "Annotations" / "480p" / name / f"{frame.stem}.png"
        try:
            with Image.open(path) as file:
                values = np.array(file)
        except OSError as e:
            raise InvalidInputError(f"{path} cannot be read ({e}): each frame needs its annotation.") from e
        if values.ndim == 3:  # some copies of DAVIS 2016 have it in RGB
            values = values[:, :, :3].max(axis=2)
        numbers = [int(number) for number in np.unique(values) if number not in (0, VOID)]
        if not numbers:
            return {VOID: values == VOID} if (values == VOID).any() else {}
        return {number: values == number for number in numbers}


@dataclass(frozen=True)
class SequenceScore:
    """What one way of following did on one object: mean J and F, frames that it was lost in, frames, seconds a frame."""

    follower: str
    sequence: str
    object: int
    j: float
    f: float
    lost: int
    frames: int
    seconds: float


class Follower(Protocol):
    """A way of following objects: told their masks and prompts in the first frame, asked for masks in the later ones."""

    def begin(self, frame: NDArray[np.uint8], prompts: dict[str, Any]) -> None: ...

    def follow(self, frame: NDArray[np.uint8]) -> list[Mask | None]: ...


class OwnTracker:
    """`live.Tracker`."""

    def __init__(self, predictor: ImagePredictor) -> None:
        self._tracker = Tracker(predictor)

    def begin(self, frame: NDArray[np.uint8], prompts: dict[str, Any]) -> None:
        self._tracker.start(frame, **prompts)

    def follow(self, frame: NDArray[np.uint8]) -> list[Mask | None]:
        return [item.mask for item in self._tracker.update(frame)]


class LastBox:
    """The box of the last mask, 10 % wider, as the next prompt: what one would try first."""

    def __init__(self, predictor: ImagePredictor) -> None:
        self._predictor = predictor
        self._boxes: list[NDArray[np.float64]] = []

    def begin(self, frame: NDArray[np.uint8], prompts: dict[str, Any]) -> None:
        masks, _ = first_masks(self._predictor, frame, prompts)
        self._boxes = [tight_box(mask) for mask in masks]

    def follow(self, frame: NDArray[np.uint8]) -> list[Mask | None]:
        self._predictor.set_image(frame)
        height, width = frame.shape[:2]
        out: list[Mask | None] = []
        for i, box in enumerate(self._boxes):
            pad = 0.05 * (box[2:] - box[:2])
            wider = np.clip(box + np.concatenate([-pad, pad]), 0, [width, height, width, height])
            found, _, _ = self._predictor.predict_prompts(boxes=wider[None], multimask_output=False)
            mask = found[0, 0]
            if mask.any():
                self._boxes[i] = tight_box(mask)
            out.append(mask)
        return out


class NanoSam:
    """NanoSAM's tracker (github.com/NVIDIA-AI-IOT/nanosam): a vector of the features, by least squares, says where to ask.

    The first mask's logits are fitted by the features. On the next frame features times the vector are the mask prompt, and
    the pixel in the middle of what they call the object is the point. The vector follows slowly.
    """

    def __init__(self, predictor: ImagePredictor) -> None:
        self._predictor = predictor
        self._vectors: list[Features] = []

    def begin(self, frame: NDArray[np.uint8], prompts: dict[str, Any]) -> None:
        masks, logits = first_masks(self._predictor, frame, prompts)
        self._vectors = [self._fit(self._predictor.get_image_embedding()[0], low) for low in logits[: len(masks)]]

    def follow(self, frame: NDArray[np.uint8]) -> list[Mask | None]:
        self._predictor.set_image(frame)
        features = self._predictor.get_image_embedding()[0]
        height, width = frame.shape[:2]
        side = features.shape[-1]
        out: list[Mask | None] = []
        for i, vector in enumerate(self._vectors):
            coarse = np.tensordot(vector, features, 1)
            rows, columns = np.nonzero(coarse > 0)
            if not len(rows):
                out.append(None)
                continue
            middle = np.array([np.median(columns), np.median(rows)]) + 0.5
            point = np.minimum(middle * (max(height, width) / side), [width - 1, height - 1])
            prompt = np.kron(coarse, np.ones((4, 4), np.float32))[None, None].astype(np.float32)
            found, _, logits = self._predictor.predict_prompts(
                point[None, None], np.ones((1, 1), np.int64), mask_input=prompt, multimask_output=False
            )
            self._vectors[i] = 0.99 * vector + 0.01 * self._fit(features, logits[0, 0])
            out.append(found[0, 0])
        return out

    @staticmethod
    def _fit(features: Features, logits: Features) -> Features:
        """Return the vector that fits logits, pooled to the features' grid, by least squares."""
        channels, side = features.shape[:2]
        pooled = logits.reshape(side, logits.shape[0] // side, side, -1).mean((1, 3)).ravel()
        cells = features.reshape(channels, -1).astype(np.float64)
        moments = cells @ cells.T
        moments += 1e-6 * np.trace(moments) / channels * np.eye(channels)  # for channels that others explain
        return np.linalg.solve(moments, cells @ pooled).astype(np.float32)


FOLLOWERS: dict[str, Callable[[ImagePredictor], Follower]] = {
    "tracker": OwnTracker,
    "nanosam": NanoSam,
    "last-box": LastBox,
}


def first_masks(
    predictor: ImagePredictor, frame: NDArray[np.uint8], prompts: dict[str, Any]
) -> tuple[list[Mask], list[Features]]:
    """Return the masks and low-resolution logits of what prompts mean in a frame; those of masks are +-8."""
    predictor.set_image(frame)
    if "masks" in prompts:
        side = 4 * predictor.get_image_embedding().shape[-1]
        scale = side / max(frame.shape[:2])
        logits = []
        for mask in prompts["masks"]:
            low = np.full((side, side), -8, np.float32)
            rows, columns = (min(side, math.ceil(size * scale)) for size in mask.shape)
            picks = [
                np.minimum(((np.arange(n) + 0.5) / scale).astype(int), size - 1)
                for n, size in zip((rows, columns), mask.shape, strict=True)
            ]
            low[:rows, :columns] = np.where(mask[np.ix_(*picks)], 8, -8)
            logits.append(low)
        return list(prompts["masks"]), logits
    several = "points" in prompts
    points = np.asarray(prompts["points"])[:, None] if several else None
    labels = np.ones((len(points), 1), np.int64) if points is not None else None
    found, scores, low_logits = predictor.predict_prompts(points, labels, prompts.get("boxes"), multimask_output=several)
    best = np.arange(len(found)), scores.argmax(1)
    return list(found[best]), list(low_logits[best])


class _Once:
    """A predictor that encodes a frame once for all who follow, and knows how long that took."""

    def __init__(self, predictor: ImagePredictor) -> None:
        self._predictor = predictor
        self._frame: Any = None
        self.seconds = 0.0

    def set_image(self, image: NDArray[Any], image_format: str = "RGB") -> None:
        if self._frame is None or not np.array_equal(image, self._frame):
            start = time.perf_counter()
            self._predictor.set_image(image, image_format)
            self.seconds = time.perf_counter() - start
            self._frame = image

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)


def evaluate_video(
    predictor: ImagePredictor,
    data: VideoDataset,
    followers: Sequence[str] = ("tracker",),
    start: str = "mask",
    render: Path | None = None,
) -> Iterator[SequenceScore]:
    """Yield the scores of each object of each sequence, for each way of following it.

    A frame is encoded once; its time counts for each way.

    Args:
        predictor: The model.
        data: The sequences.
        followers: Names out of `FOLLOWERS`.
        start: How the objects of the first frame are told: their mask, its box, or a click on its innermost pixel.
        render: A folder for a video of each sequence, with the masks of the first of the followers.

    Raises:
        UnknownNameError: there is no such follower or start.
        InvalidInputError: an annotation is missing, or nothing is annotated in a first frame.
    """
    for name in followers:
        if name not in FOLLOWERS:
            raise UnknownNameError.near("way of following", name, FOLLOWERS)
    if start not in STARTS:
        raise UnknownNameError.near("start", start, STARTS)
    shared = _Once(predictor)
    for name in data.names:
        frames = data.frames(name)
        first = read_image(frames[0])
        truths = data.truths(name, frames[0])
        if not truths:
            raise InvalidInputError(f"the first frame of {name} has no object: leave the sequence out.")
        prompts = _prompts(list(truths.values()), start)
        running = {key: FOLLOWERS[key](shared) for key in followers}
        for follower in running.values():
            follower.begin(first, prompts)
        marks: dict[tuple[str, int], list[tuple[float, float, bool]]] = {(k, n): [] for k in running for n in truths}
        spent = dict.fromkeys(running, 0.0)
        overlay = None if render is None else Overlay(render / f"{name}.mp4", RATE)
        with overlay or nullcontext():
            for number, path in enumerate(frames[1:-1], 1):
                frame = read_image(path)
                shared.set_image(frame)
                true = data.truths(name, path)
                for key, follower in running.items():
                    began = time.perf_counter()
                    masks = follower.follow(frame)
                    spent[key] += time.perf_counter() - began + shared.seconds
                    for value, mask in zip(truths, masks, strict=True):
                        truth = true.get(value, np.zeros(frame.shape[:2], bool))
                        got = np.zeros_like(truth) if mask is None else mask
                        marks[key, value].append((mask_iou(got, truth), contour_accuracy(got, truth), mask is None))
                    if overlay is not None and key == followers[0]:
                        seen = np.array([mask for mask in masks if mask is not None]).reshape(-1, *frame.shape[:2]).astype(bool)
                        overlay.write(
                            Result(number, number / RATE, frame[:, :, ::-1], seen, np.ones(len(seen), np.float32), 0.0)
                        )
        for (key, value), found in marks.items():
            j, f, lost = (np.array(column) for column in zip(*found, strict=True))
            yield SequenceScore(
                key, name, value, float(j.mean()), float(f.mean()), int(lost.sum()), len(found), spent[key] / len(found)
            )


def _prompts(masks: list[Mask], start: str) -> dict[str, Any]:
    if start == "mask":
        return {"masks": masks}
    if start == "box":
        return {"boxes": np.array([tight_box(mask) for mask in masks])}
    return {"points": np.array([innermost_pixel(mask) for mask in masks], dtype=np.float64)}


def video_table(scores: Sequence[SequenceScore]) -> str:
    """Return the scores as a table, a line an object, and the mean of each way of following."""
    lines = ["| sequence | object | follower | J | F | J&F | lost | seconds a frame |", "|---|---|---|---|---|---|---|---|"]
    for s in scores:
        lines.append(
            f"| {s.sequence} | {s.object} | {s.follower} | {s.j:.3f} | {s.f:.3f} | {(s.j + s.f) / 2:.3f} "
            f"| {s.lost} of {s.frames} | {s.seconds:.3f} |"
        )
    for name in dict.fromkeys(s.follower for s in scores):
        own = [s for s in scores if s.follower == name]
        j, f, seconds = (float(np.mean([getattr(s, key) for s in own])) for key in ("j", "f", "seconds"))
        lost, frames = sum(s.lost for s in own), sum(s.frames for s in own)
        lines.append(f"| mean | | {name} | {j:.3f} | {f:.3f} | {(j + f) / 2:.3f} | {lost} of {frames} | {seconds:.3f} |")
    return "\n".join(lines)
