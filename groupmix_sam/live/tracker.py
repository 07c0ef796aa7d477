"""Objects followed through a video by a predictor for single images: no training, constant memory.

What an object looks like is kept as the feature vectors of its cells, and so are those of what surrounds it: of the first frame
for ever, of a few frames from when it was last seen well, and of the frame before. Each cell of a new frame is compared with
all of them (label propagation): the nearest of the object's own vectors against the nearest of the background and of the other
objects, with a penalty for the distance that it would have moved. That gives a coarse mask, which is the prompt for SAM's
decoder: as a mask, and as its box. SAM draws the outline, and is believed as far as it agrees with the coarse mask.

An object is lost when what is in its place does not look like it. It is then searched for over the whole frame, by appearance
alone, and is found where it looks like itself again and nothing else does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..images import as_rgb
from ..inference.mask_resize import neighbours, resize_mask
from ..masks import tight_box
from .partial import PartialPredictor

__all__ = ["ImagePredictor", "State", "TrackedObject", "Tracker"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
State = Literal["tracked", "lost", "found"]

# Channels of the features that are compared, the ones in which the first frame varies most.
CHANNELS = 64
# By how much a cosine similarity has to be larger for one of two labels to be e times as likely.
TEMPERATURE = 0.07
# What a step of one cell costs in cosine similarity, squared with the distance: against the frame before, against one of the
# kept frames, and against the first.
STEP, STEP_KEPT, STEP_FIRST = 0.003, 0.001, 0.0005
# Every so many frames that were seen well one is kept, so many at most.
KEEP_EVERY, KEPT = 5, 3
# Logits beyond this say no more than "sure".
SURE = 4.0
# The decoder was trained on masks of its own, whose logits are larger than ours.
MASK_PROMPT_SCALE = 1.5
# From this agreement on, the IoU of SAM's mask with the coarse one, SAM's mask decides; below it, the coarse one does.
AGREE = 0.7
# From this agreement on, the mask that follows from the coarse one is taken without asking for three more.
ENOUGH = 0.75
# An object's likeness is the mean similarity of its cells to what is kept of it, as a share of what is usual. It is lost
# below the first, remembered above the second, and found again above the third.
LOST, REMEMBER, FOUND = 0.65, 0.8, 0.75
# Areas, as shares of the usual one, that are refused: a mask that suddenly grows or is nearly gone.
SMALLEST, LARGEST = 0.1, 3.0
# Cells around an object that belong to its surroundings, besides half of its own size.
MARGIN = 4
# A frame whose brightest and darkest values are no farther apart shows nothing.
BLANK = 10


class ImagePredictor(Protocol):
    """What the tracker needs of a predictor: the methods of `Predictor`, whatever the backend."""

    def set_image(self, image: NDArray[Any], image_format: str = "RGB") -> None: ...

    def get_image_embedding(self) -> Floats: ...

    def predict_prompts(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], Floats, Floats]: ...

    def predict_logits(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
    ) -> tuple[Floats, Floats]: ...


@dataclass(frozen=True)
class TrackedObject:
    """An object in a frame: its mask, H x W, and its box, x0, y0, x1, y1 in pixels; both None where it is lost.

    `score` is from 0 to 1: how sure the cells of the mask are, times how much they look like the object.
    """

    id: int
    mask: Bools | None
    box: NDArray[np.float64] | None
    score: float
    state: State


class _Grid(NamedTuple):
    """The cells of the features that show the frame, not its padding; a cell is `cell` pixels wide."""

    rows: int
    columns: int
    side: int
    cell: float


class _Bank(NamedTuple):
    """Vectors of an object's cells and of what is not the object, as `_bank` makes them, and what a step costs."""

    inside: Floats
    outside: Floats
    step: float


@dataclass
class _Memory:
    """What is kept of an object."""

    first: _Bank
    last: _Bank
    kept: list[_Bank]
    scene: _Bank
    # The usual likeness and the usual number of cells.
    likeness: float
    area: float
    # The share of each cell that the object covers, rows x columns, when it was last seen; its middle and its motion, in cells.
    cover: Floats
    middle: Floats
    motion: Floats = field(default_factory=lambda: np.zeros(2, np.float32))
    seen_well: int = 0
    lost: bool = False
    # Objects that it overlapped from the start, such as a part of it: neither is background to the other.
    related: set[int] = field(default_factory=set)


class _Found(NamedTuple):
    """An object in the frame at hand, before objects are set apart: logits, 4 rows x 4 columns, and how sure they are."""

    logits: Floats
    agreement: float
    likeness: float
    certainty: float


class Tracker:
    """Follow objects from frame to frame::

        tracker = Tracker(predictor)
        ids = tracker.start(frame, boxes=[[170, 16, 420, 312]])
        for frame in frames:
            for item in tracker.update(frame):
                item.id, item.mask, item.box, item.score, item.state

    Nothing grows with the number of frames. Frames are H x W x 3, RGB, uint8, or what else `as_rgb` takes. The predictor is
    the tracker's own while it runs.

    A frame that is the same as the one before gives the same objects, and so does one of which the predictor encoded nothing.
    A blank one, as of a covered camera, gives lost ones.
    Where frames change their size objects go on if the shape is the same, and are searched for if not.

    Args:
        predictor: A `Predictor`, with any backend.
    """

    def __init__(self, predictor: ImagePredictor) -> None:
        self._predictor = predictor
        self._memories: dict[int, _Memory] = {}
        self._next = 0
        # The last frame, and the last one that was encoded.
        self._seen: NDArray[np.uint8] | None = None
        self._frame: NDArray[np.uint8] | None = None
        self._objects: list[TrackedObject] = []
        # The embedding that the objects were found in; None if they were not.
        self._features: Floats | None = None
        self._basis: tuple[Floats, Floats] | None = None
        self._grid = _Grid(0, 0, 0, 0.0)
        self._cells: Floats = np.zeros((0, 0, 0), np.float32)

    def start(
        self,
        frame: NDArray[Any],
        *,
        boxes: Any = None,
        points: Any = None,
        labels: Any = None,
        masks: Sequence[Bools] | None = None,
    ) -> list[int]:
        """Forget everything and begin with the objects in a frame; return their ids.

        Args:
            frame: H x W x 3, RGB, uint8.
            boxes: P x 4: x0, y0, x1, y1 in pixels.
            points: P x N x 2, x before y, or P x 2 for one point each.
            labels: P x N: 1 for foreground, 0 for background; by default all are foreground.
            masks: P masks, H x W of bool.

        Raises:
            InvalidInputError: there is no prompt, one that cannot be used, or nothing under one.
        """
        self._memories.clear()
        self._basis = None
        self._objects = []
        image = as_rgb(frame)
        self._seen = image.copy()
        self._encode(image)
        self._look()
        return self.add(boxes=boxes, points=points, labels=labels, masks=masks)

    def add(
        self, *, boxes: Any = None, points: Any = None, labels: Any = None, masks: Sequence[Bools] | None = None
    ) -> list[int]:
        """Follow further objects from the last frame on; return their ids. Arguments and errors are those of `start`."""
        if self._frame is None:
            raise InvalidInputError("there is no frame yet: call start() with the first frame and its objects.")
        found = self._masks_of(boxes, points, labels, masks)
        covers = [_cover(mask, self._grid) for mask in found]
        taken = {number: memory.cover for number, memory in self._memories.items() if not memory.lost}
        fresh = list(range(self._next, self._next + len(found)))
        self._next += len(found)
        taken |= dict(zip(fresh, covers, strict=True))
        for number, mask in zip(fresh, found, strict=True):
            related = {other for other in taken if other != number and _overlap(taken[other], taken[number]) > 0.5}
            self._memories[number] = self._remember_first(taken[number], related)
            for other in related & self._memories.keys():
                self._memories[other].related.add(number)
            self._objects.append(TrackedObject(number, mask, tight_box(mask), 1.0, "tracked"))
        return fresh

    def drop(self, number: int) -> None:
        """Follow an object no longer.

        Raises:
            InvalidInputError: there is no object of that id.
        """
        if number not in self._memories:
            raise InvalidInputError(f"there is no object {number}: those that are followed are {sorted(self._memories)}.")
        del self._memories[number]
        self._objects = [item for item in self._objects if item.id != number]

    def update(self, frame: NDArray[Any]) -> list[TrackedObject]:
        """Return the objects in the next frame, in the order of their ids.

        Args:
            frame: H x W x 3, RGB, uint8.

        Raises:
            InvalidInputError: the frame cannot be used, or there was no `start`.
        """
        if self._frame is None:
            raise InvalidInputError("there is no frame yet: call start() with the first frame and its objects.")
        image = as_rgb(frame)
        if self._seen is not None and np.array_equal(image, self._seen):
            self._objects = [_settled(item) for item in self._objects]
            return list(self._objects)
        self._seen = image.copy()  # cameras write frame after frame into one buffer
        if int(image.max()) - int(image.min()) <= BLANK:
            for memory in self._memories.values():
                memory.lost = True
            self._objects = [TrackedObject(number, None, None, 0.0, "lost") for number in self._memories]
            self._features = None
            return list(self._objects)
        if not self._encode(image):
            for memory in self._memories.values():
                memory.motion = np.zeros(2, np.float32)
            self._objects = [_settled(item) for item in self._objects]
            return list(self._objects)
        before = self._grid
        self._look()
        if self._grid[:2] != before[:2]:
            for memory in self._memories.values():
                memory.lost = True
        found = {
            number: self._search(memory) if memory.lost else self._follow(memory) for number, memory in self._memories.items()
        }
        self._set_apart(found)
        self._objects = [self._conclude(number, found[number]) for number in self._memories]
        return list(self._objects)

    # ---- features ----

    def _encode(self, image: NDArray[np.uint8]) -> bool:
        """Encode a frame; return False if the predictor saw nothing new in it, and gave the embedding that it gave before."""
        if isinstance(self._predictor, PartialPredictor):
            self._predictor.watch(self._expected())
        self._predictor.set_image(image)
        self._frame = image
        embedding = self._predictor.get_image_embedding()
        same = embedding is self._features
        self._features = embedding
        return not same

    def _expected(self) -> NDArray[np.float64] | None:
        """Return the boxes, in pixels, where the objects will be if they go on as they moved; None if one is searched for."""
        if not self._memories or any(memory.lost for memory in self._memories.values()):
            return None
        boxes = []
        for memory in self._memories.values():
            rows, columns = (np.flatnonzero(memory.cover.max(axis) > 0) for axis in (1, 0))
            box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) + np.tile(memory.motion[::-1], 2)
            boxes.append(box * self._grid.cell)
        return np.array(boxes)

    def _look(self) -> None:
        """Bring the cells that are compared up to date with the embedding."""
        assert self._frame is not None
        assert self._features is not None
        features = self._features[0]
        height, width = self._frame.shape[:2]
        side, longest = features.shape[-1], max(height, width)
        rows, columns = -(-side * height // longest), -(-side * width // longest)
        self._grid = _Grid(rows, columns, side, longest / side)
        cells = features[:, :rows, :columns].reshape(len(features), -1).T.astype(np.float32, copy=False)
        if self._basis is None:
            self._basis = _principal(cells)
        cells = _product(cells - self._basis[0], self._basis[1])
        cells /= np.linalg.norm(cells, axis=1, keepdims=True) + 1e-6
        self._cells = cells.reshape(rows, columns, -1)

    def _masks_of(self, boxes: Any, points: Any, labels: Any, masks: Sequence[Bools] | None) -> list[Bools]:
        """Return the masks that the prompts mean, in the frame that is encoded."""
        assert self._frame is not None
        size = self._frame.shape[:2]
        if masks is not None:
            if boxes is not None or points is not None:
                raise InvalidInputError("masks say all there is to say: leave out boxes and points.")
            for mask in masks:
                if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != size:
                    what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
                    raise InvalidInputError(f"a mask is {what}: give bool arrays of the frame's {size}.")
            found = list(masks)
        elif boxes is None and points is None:
            raise InvalidInputError("there is nothing to follow: give boxes, points or masks.")
        else:
            found = self._segment(boxes, points, labels)
        for i, mask in enumerate(found):
            if not mask.any():
                raise InvalidInputError(
                    f"prompt {i} has no object under it: put the point inside the object, or draw a box around it."
                )
        return found

    def _segment(self, boxes: Any, points: Any, labels: Any) -> list[Bools]:
        coords = None if points is None else np.asarray(points, dtype=np.float64)
        if coords is not None and coords.ndim == 2:
            coords = coords[:, None]
        kinds = np.asarray(labels) if labels is not None else None if coords is None else np.ones(coords.shape[:2], np.int64)
        if coords is not None and kinds is not None and kinds.ndim == 1:
            kinds = kinds[:, None]
        rectangles = None if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        # As `segment` has it: the best of three for a single point, which may mean a part or the whole.
        several = coords is not None and coords.shape[1] == 1 and rectangles is None
        found, scores, _ = self._predictor.predict_prompts(coords, kinds, rectangles, multimask_output=several)
        return [options[int(values.argmax())] for options, values in zip(found, scores, strict=True)]

    def _window(self, cover: Floats, motion: Floats) -> tuple[slice, slice]:
        """Return the rows and columns in which an object may be in the next frame, with its surroundings."""
        window = []
        for axis, size in ((1, self._grid.rows), (0, self._grid.columns)):
            inside = np.flatnonzero(cover.max(axis) > 0.1)
            first, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, size)
            margin = MARGIN + (stop - first) // 2 + int(abs(motion[1 - axis]))
            window.append(slice(max(0, first - margin), min(size, stop + margin)))
        return window[0], window[1]

    def _positions(self, window: tuple[slice, slice]) -> Floats:
        rows, columns = np.mgrid[window].astype(np.float32)
        return np.stack([rows.ravel(), columns.ravel()], axis=1)

    def _bank(self, cover: Floats, window: tuple[slice, slice], step: float, allies: Floats | None = None) -> _Bank:
        """Return the vectors of the window's cells by how much of them the object covers.

        A row is a vector, and what makes its product with a query of `_compare` its similarity less the cost of the distance.
        Cells of `allies`, objects that overlap it from the start, belong to neither side.
        """
        vectors = self._cells[window].reshape(-1, self._cells.shape[-1])
        places = self._positions(window)
        share = cover[window].ravel()
        # So that a thing smaller than a cell has cells of its own.
        inside = share * max(1.0, 0.9 / max(float(share.max()), 1e-3))
        outside = 1 - inside if allies is None else np.minimum(1 - inside, 1 - allies[window].ravel())
        sides = []
        for weight in (inside, outside):
            some = weight > 0.02
            offset = TEMPERATURE * np.log(weight[some]) - step * (places[some] ** 2).sum(1)
            sides.append(np.concatenate([vectors[some], 2 * step * places[some], offset[:, None]], axis=1).astype(np.float32))
        return _Bank(sides[0], sides[1], step)

    def _remember_first(self, cover: Floats, related: set[int]) -> _Memory:
        everywhere = slice(0, self._grid.rows), slice(0, self._grid.columns)
        still = np.zeros(2, np.float32)
        window = self._window(cover, still)
        first = self._bank(cover, window, STEP_FIRST)
        return _Memory(
            first=first,
            last=self._bank(cover, window, STEP),
            kept=[],
            scene=self._bank(cover, everywhere, 0.0),
            likeness=0.95,  # what the next frames show of a rigid object
            area=float(cover.sum()),
            cover=cover,
            middle=_middle(cover),
            related=set(related),
        )

    # ---- one object in one frame ----

    def _compare(self, memory: _Memory, banks: Sequence[_Bank], window: tuple[slice, slice], steps: bool) -> Floats:
        """Return the coarse mask as logits over the window: the nearest of the object against the nearest of all else."""
        vectors = self._cells[window].reshape(-1, self._cells.shape[-1])
        places = self._positions(window) - memory.motion
        if not steps:
            places = np.zeros_like(places)
        queries = np.concatenate([vectors, places, np.ones((len(vectors), 1), np.float32)], axis=1)
        distance = (places**2).sum(1)
        best = np.full((2, len(vectors)), -np.inf, np.float32)
        for bank in banks:
            for side, rows in enumerate((bank.inside, bank.outside)):
                if len(rows):
                    if not steps:
                        rows = rows[:, : vectors.shape[1]]
                        near = _product(vectors, rows.T).max(1)
                    else:
                        near = _product(queries, rows.T).max(1) - bank.step * distance
                    np.maximum(best[side], near, out=best[side])
        shape = self._cells[window].shape[:2]
        return np.clip((best[0] - best[1]) / TEMPERATURE, -2 * SURE, 2 * SURE).reshape(shape)

    def _likeness(self, memory: _Memory, cover: Floats) -> float:
        """Return the mean similarity of the covered cells to what is kept of the object, whatever else they look like."""
        cells = self._cells[cover >= min(0.5, float(cover.max()))]
        channels = cells.shape[1]
        near = [_product(cells, bank.inside[:, :channels].T).max(1) for bank in (memory.first, *memory.kept)]
        return float(np.max(near, axis=0).mean())

    def _follow(self, memory: _Memory) -> _Found | None:
        window = self._window(memory.cover, memory.motion)
        coarse = np.full((self._grid.rows, self._grid.columns), -2 * SURE, np.float32)
        coarse[window] = self._compare(memory, (memory.first, memory.last, *memory.kept), window, steps=True)
        moved = _shift(memory.cover, memory.motion)
        seeds = _spread(moved > min(0.5, float(moved.max()) / 2), 2)
        return self._draw(memory, np.where(_grow(seeds, coarse > 0), coarse, np.minimum(coarse, -SURE / 4)))

    def _search(self, memory: _Memory) -> _Found | None:
        everywhere = slice(0, self._grid.rows), slice(0, self._grid.columns)
        banks = (memory.first, *memory.kept, memory.scene)
        coarse = self._compare(memory, banks, everywhere, steps=False)
        peak = np.zeros(coarse.shape, bool)
        peak.flat[int(_blur(coarse).argmax())] = True
        return self._draw(memory, np.where(_grow(_spread(peak, 1), coarse > 0), coarse, np.minimum(coarse, -SURE / 4)))

    def _draw(self, memory: _Memory, coarse: Floats) -> _Found | None:
        """Return the object with the outline that SAM draws where the coarse logits are, None if there is nothing."""
        assert self._frame is not None
        grid = self._grid
        fine = _enlarge(coarse)
        ys, xs = np.nonzero(fine > 0)
        if not len(ys):
            return None
        height, width = self._frame.shape[:2]
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * (grid.cell / 4)
        pad = 0.05 * (box[2:] - box[:2])
        box = np.clip(box + np.concatenate([-pad, pad]), 0, [width, height, width, height])
        if (box[2:] - box[:2]).min() < 1:
            return None
        prompt = np.full((1, 1, 4 * grid.side, 4 * grid.side), -SURE * MASK_PROMPT_SCALE, np.float32)
        prompt[0, 0, : 4 * grid.rows, : 4 * grid.columns] = np.clip(fine, -SURE, SURE) * MASK_PROMPT_SCALE
        share = (1 / (1 + np.exp(-fine))).astype(np.float32)
        drawn = []
        for mask_input, several in ((prompt, False), (None, True)):
            scores, logits = self._predictor.predict_logits(boxes=box[None], mask_input=mask_input, multimask_output=several)
            drawn += [
                (_soft_iou(option[: 4 * grid.rows, : 4 * grid.columns], share), float(score), option)
                for option, score in zip(logits[0], scores[0], strict=True)
            ]
            if drawn[0][0] > ENOUGH:
                break
        agreement, _, best = max(drawn, key=lambda option: option[0] + 0.1 * option[1])
        outline = np.clip(best[: 4 * grid.rows, : 4 * grid.columns], -SURE, SURE)
        logits = outline + (0.5 if agreement > AGREE else 1.2) * np.clip(fine, -SURE, SURE)
        cover = _cover_of(logits)
        if not cover.any():
            return None
        certainty = float(share[logits > 0].mean())
        return _Found(logits, agreement, self._likeness(memory, cover), certainty)

    def _set_apart(self, found: dict[int, _Found | None]) -> None:
        """Give each point that several objects claim to the one that claims it most, unless they are related."""
        present = [(number, item) for number, item in found.items() if item is not None]
        for i, (number, item) in enumerate(present):
            for other, rival in present[:i]:
                if other not in self._memories[number].related:
                    both = (item.logits > 0) & (rival.logits > 0)
                    stronger = item.logits > rival.logits
                    rival.logits[both & stronger] = -1
                    item.logits[both & ~stronger] = -1

    def _conclude(self, number: int, found: _Found | None) -> TrackedObject:
        """Decide whether it is the object, remember what it looks like, and return it."""
        memory = self._memories[number]
        cover = None if found is None else _cover_of(found.logits)
        if found is None or cover is None or not self._accepted(memory, found, cover):
            memory.lost = True
            return TrackedObject(number, None, None, 0.0, "lost")
        state: State = "found" if memory.lost else "tracked"
        middle = _middle(cover)
        if memory.lost:
            memory.motion = np.zeros(2, np.float32)
        else:
            memory.motion = 0.5 * memory.motion + 0.5 * (middle - memory.middle)
        memory.lost, memory.cover, memory.middle = False, cover, middle
        allies = [self._memories[other].cover for other in memory.related if other in self._memories]
        ally = np.max(allies, axis=0) if allies else None
        window = self._window(cover, memory.motion)
        memory.last = self._bank(cover, window, STEP, ally)
        ratio = found.likeness / memory.likeness
        if ratio > REMEMBER:
            memory.likeness += 0.1 * (found.likeness - memory.likeness)
            memory.area += 0.1 * (float(cover.sum()) - memory.area)
            memory.seen_well += 1
            if memory.seen_well % KEEP_EVERY == 0:
                memory.kept = [*memory.kept, self._bank(cover, window, STEP_KEPT, ally)][-KEPT:]
        mask = self._enlarge_to_frame(found.logits)
        score = min(1.0, ratio) * found.certainty
        return TrackedObject(number, mask, tight_box(mask), score, state)

    def _accepted(self, memory: _Memory, found: _Found, cover: Floats) -> bool:
        area = float(cover.sum()) / max(memory.area, 1e-3)
        if not SMALLEST < area < LARGEST:
            return False
        return found.likeness > (FOUND if memory.lost else LOST) * memory.likeness

    def _enlarge_to_frame(self, logits: Floats) -> Bools:
        """Return where logits, resized to the frame, are positive."""
        assert self._frame is not None
        size = self._frame.shape[:2]
        rows, columns = (neighbours(n, s, 4 * n / self._grid.cell) for n, s in zip(size, logits.shape, strict=True))
        mask = np.empty(size, bool)
        resize_mask(logits, rows, columns, 0.0, mask)
        return mask


def _product(a: Floats, b: Floats) -> Floats:
    """Return a @ b, by PyTorch: the threads of NumPy's OpenBLAS spin afterwards, and take the cores from the model."""
    product: Floats = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product


def _principal(vectors: Floats) -> tuple[Floats, Floats]:
    """Return the mean and the projection to the channels in which vectors of equal spread vary most."""
    mean, spread = vectors.mean(0), vectors.std(0) + 1e-6
    scaled = (vectors - mean) / spread
    _, directions = np.linalg.eigh(_product(scaled.T, scaled))
    return mean, (directions[:, ::-1][:, :CHANNELS] / spread[:, None]).astype(np.float32)


def _cover(mask: Bools, grid: _Grid) -> Floats:
    """Return the share of each cell that a mask covers, rows x columns."""
    starts = [np.floor(np.arange(count) * grid.cell).astype(int) for count in (grid.rows, grid.columns)]
    sums = np.add.reduceat(np.add.reduceat(mask.astype(np.float32), starts[0], axis=0), starts[1], axis=1)
    heights, widths = (np.diff(edges, append=size) for edges, size in zip(starts, mask.shape, strict=True))
    return sums / (heights[:, None] * widths[None])


def _cover_of(logits: Floats) -> Floats:
    """Return the share of each cell that is covered by logits with 4 x 4 points a cell."""
    rows, columns = logits.shape
    return (logits > 0).reshape(rows // 4, 4, columns // 4, 4).mean((1, 3), dtype=np.float32)


def _overlap(a: Floats, b: Floats) -> float:
    """Return the share of the smaller of two objects that lies in the other."""
    return float(np.minimum(a, b).sum() / max(1e-6, min(a.sum(), b.sum())))


def _middle(cover: Floats) -> Floats:
    rows, columns = np.indices(cover.shape)
    total = max(float(cover.sum()), 1e-6)
    return np.array([(cover * rows).sum() / total, (cover * columns).sum() / total], np.float32)


def _shift(cover: Floats, motion: Floats) -> Floats:
    """Return an object's cells moved by whole cells; what leaves the frame is gone."""
    out = np.zeros_like(cover)
    down, right = (int(step) for step in np.round(motion))
    rows, columns = cover.shape
    if abs(down) < rows and abs(right) < columns:
        part = cover[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
        out[max(0, down) : max(0, down) + part.shape[0], max(0, right) : max(0, right) + part.shape[1]] = part
    return out


def _spread(cells: Bools, times: int) -> Bools:
    """Return cells with their eight neighbours, and theirs."""
    for _ in range(times):
        padded = np.pad(cells, 1)
        tall = padded[:-2] | padded[1:-1] | padded[2:]
        cells = tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]
    return cells


def _grow(seeds: Bools, allowed: Bools) -> Bools:
    """Return the allowed cells that are connected with a seed."""
    reached = seeds & allowed
    while True:
        wider = _spread(reached, 1) & allowed
        if wider.sum() == reached.sum():
            return reached
        reached = wider


def _blur(values: Floats) -> Floats:
    """Return the mean of each cell and its eight neighbours."""
    padded = np.pad(values, 1, mode="edge")
    tall = padded[:-2] + padded[1:-1] + padded[2:]
    return (tall[:, :-2] + tall[:, 1:-1] + tall[:, 2:]) / 9


def _enlarge(values: Floats) -> Floats:
    """Return values for 4 x 4 points a cell, bilinearly."""
    for _ in range(2):
        count = 4 * len(values)
        place = np.clip((np.arange(count) + 0.5) / 4 - 0.5, 0, len(values) - 1)
        first = np.minimum(place.astype(int), max(len(values) - 2, 0))
        share = (place - first).astype(np.float32)[:, None]
        second = np.minimum(first + 1, len(values) - 1)
        values = np.ascontiguousarray((values[first] * (1 - share) + values[second] * share).T)
    return values


def _soft_iou(logits: Floats, share: Floats) -> float:
    """Return the IoU of a mask, as logits, with one whose points belong to it by a share."""
    inside = logits > 0
    return float(share[inside].sum() / (inside.sum() + share[~inside].sum()))


def _settled(item: TrackedObject) -> TrackedObject:
    """Return an object as the next frame has it if that is the same frame."""
    return replace(item, state="tracked") if item.state == "found" else item
