"""Encoding only what moved: a predictor for a fixed camera.

The encoder looks at a window around what changed, and the window's features take their place in those that are kept. What
changed is told block by block, against what each block looked like when it was last encoded, so that nothing creeps away
unseen; how much is noise is learnt from the camera's own frames.
"""

import time
import warnings
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..images import as_rgb
from ..inference import Predictor
from ..inference.backends import TorchBackend
from ..masks import mask_iou

__all__ = ["PartialPredictor"]

Floats = NDArray[np.float32]

# Pixels of the encoder's input: a block that is compared, and the step of a window's sides.
BLOCK, STEP = 8, 64
# A block changed if its mean difference exceeds the noise by this factor and by this much of a standard deviation of SAM's
# normalisation, which is 57 levels: two levels.
NOISE_FACTOR, LEAST_CHANGE = 2.0, 2 / 57
# What the first two frames may differ by and still be called noise: 8 levels in the mean.
MOST_NOISE = 8 / 57
# Beyond this share of the frame a window saves nothing.
WORTH = 0.6
# Pixels around what changed that are encoded with it, at first and at most.
MARGIN, MOST_MARGIN = 64, 192
# Partial encodings after which one is checked.
AUDIT_EVERY = 50


class PartialPredictor:
    """A `Predictor` that encodes only what changed since it was last encoded; the camera has to stand still.

    It takes a predictor's place in a `Tracker`. Everything is encoded in the first frame, where much of the frame has changed,
    as when the camera is bumped, and every `refresh` seconds.

    It audits itself: every so often a frame is encoded in full as well, and the masks of the last prompts are compared. If
    their mean IoU is below `min_iou`, the margin around what changed grows, and at its limit every frame is encoded in full. A
    warning says so.

    Args:
        predictor: A predictor in PyTorch: exported encoders take one size.
        refresh: Seconds after which a frame is encoded in full.
        min_iou: The IoU with full encoding that an audit asks for.

    Raises:
        InvalidInputError: the predictor's encoder takes one size only.
    """

    def __init__(self, predictor: Predictor, *, refresh: float = 10.0, min_iou: float = 0.9) -> None:
        if not isinstance(predictor.model.encoder, TorchBackend):
            raise InvalidInputError("an exported encoder takes one size, and no window: give a Predictor of a Sam in PyTorch.")
        self._predictor = predictor
        self._refresh = refresh
        self._min_iou = min_iou
        # The input as each pixel was last encoded, and that of the frame before.
        self._encoded: Floats | None = None
        self._before: Floats | None = None
        self._features: Floats = np.zeros((1, 256, 0, 0), np.float32)
        self._size = (0, 0)
        self._noise = 0.0
        self._since = 0.0
        self._windows = 0
        self._unchecked = 0
        self._prompts: dict[str, Any] | None = None
        self.margin = MARGIN
        self.always_full = False
        # The share of the last frame that was encoded, and the IoU of the last audits.
        self.share = 1.0
        self.audits: deque[float] = deque(maxlen=100)

    def set_image(self, image: NDArray[Any], image_format: str = "RGB") -> None:
        """Bring the embedding up to date with a frame.

        Args:
            image: H x W x 3, uint8; also H x W, H x W x 4 or uint16.
            image_format: "RGB" or "BGR".
        """
        array = as_rgb(image)
        pixels = self._predictor.preprocess(array, image_format)
        if self._encoded is None or self._size != array.shape[:2] or self.always_full:
            self._size = array.shape[0], array.shape[1]
            self._encode_all(pixels)
            return
        window = self._window(self._changed(pixels))
        due = self._windows > 0 and time.monotonic() - self._since > self._refresh
        if due or (window is not None and self._area(window) > WORTH * pixels[0].size):
            self._encode_all(pixels)
            return
        self.share = 0.0
        if window is not None:
            rows, columns = window
            stride = pixels.shape[1] // self._features.shape[2]
            part = self._predictor.encode(np.ascontiguousarray(pixels[None, :, rows, columns]))
            at = tuple(slice(side.start // stride, side.stop // stride) for side in window)
            self._features = self._features.copy()
            self._features[:, :, at[0], at[1]] = part
            self._encoded[:, rows, columns] = pixels[:, rows, columns]
            self.share = self._area(window) / pixels[0].size
            self._windows += 1
            self._unchecked += 1
        self._predictor.set_embedding(self._features, self._size)
        if self._unchecked >= AUDIT_EVERY:
            self._audit(pixels)

    def get_image_embedding(self) -> Floats:
        """Return the frame's embedding, 1 x 256 x G x G."""
        return self._predictor.get_image_embedding()

    def predict_prompts(self, *prompts: Any, **options: Any) -> tuple[NDArray[Any], Floats, Floats]:
        """Do what `Predictor.predict_prompts` does."""
        self._prompts = {"prompts": prompts, "options": options}
        return self._predictor.predict_prompts(*prompts, **options)

    def predict_single_mask(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.bool_], Floats]:
        """Do what `Predictor.predict_single_mask` does."""
        self._prompts = {"prompts": (point_coords, point_labels, boxes), "options": {"multimask_output": False}}
        return self._predictor.predict_single_mask(point_coords, point_labels, boxes)

    def _encode_all(self, pixels: Floats) -> None:
        self._features = self._predictor.encode(pixels[None])
        self._encoded, self._before = pixels.copy(), pixels
        self._since = time.monotonic()
        self._windows = 0
        self.share = 1.0
        self._predictor.set_embedding(self._features, self._size)

    def _changed(self, pixels: Floats) -> NDArray[np.bool_]:
        """Return which blocks differ from when they were last encoded by more than noise.

        Noise is what most blocks differ by from the frame before, so that light that changes slowly is not taken for it.
        """
        assert self._encoded is not None
        assert self._before is not None
        rows, columns = self._extent(0) // BLOCK, self._extent(1) // BLOCK
        noise = float(np.median(_blocks(np.abs(pixels - self._before))[:rows, :columns]))
        # A frame that changes everywhere is no noise.
        limit = 2 * self._noise if self._noise else MOST_NOISE
        self._noise += (0.1 if self._noise else 1) * (min(noise, limit) - self._noise)
        self._before = pixels
        return _blocks(np.abs(pixels - self._encoded)) > max(NOISE_FACTOR * self._noise, self._noise + LEAST_CHANGE)

    def _extent(self, axis: int) -> int:
        """Return the rows or columns of the input that are not padding."""
        return max(BLOCK, round(self._size[axis] * self._predictor.image_size / max(self._size)))

    def _window(self, changed: NDArray[np.bool_]) -> tuple[slice, slice] | None:
        """Return the rows and columns to encode, of sides that are multiples of 64; None if nothing changed."""
        assert self._encoded is not None
        if not changed.any():
            return None
        window = []
        for axis in (0, 1):
            hit = np.flatnonzero(changed.any(1 - axis)) * BLOCK
            limit = self._encoded.shape[1 + axis]
            first = max(0, int(hit[0]) - self.margin)
            side = min(limit, -(-(int(hit[-1]) + BLOCK + self.margin - first) // STEP) * STEP)
            first = min(first // 16 * 16, limit - side)
            window.append(slice(first, first + side))
        return window[0], window[1]

    @staticmethod
    def _area(window: tuple[slice, slice]) -> int:
        return (window[0].stop - window[0].start) * (window[1].stop - window[1].start)

    def _audit(self, pixels: Floats) -> None:
        """Encode the frame in full as well, and compare the masks of the last prompts."""
        asked = self._prompts
        partial = None if asked is None else self._predictor.predict_prompts(*asked["prompts"], **asked["options"])[0]
        self._encode_all(pixels)
        self._unchecked = 0
        if asked is None or partial is None:
            return
        full = self._predictor.predict_prompts(*asked["prompts"], **asked["options"])[0]
        iou = float(np.mean([mask_iou(a, b) for a, b in zip(partial[:, 0] > 0, full[:, 0] > 0, strict=True)]))
        self.audits.append(iou)
        if iou >= self._min_iou:
            return
        if self.margin < MOST_MARGIN:
            self.margin += STEP
            what = f"{self.margin} pixels around what moves are encoded from now on"
        else:
            self.always_full = True
            what = "every frame is encoded in full from now on"
        warnings.warn(f"masks of partial encoding had an IoU of {iou:.3f} with full encoding: {what}.", stacklevel=3)


def _blocks(pixels: Floats) -> Floats:
    """Return the mean of each block over pixels and colours."""
    rows, columns = pixels.shape[1] // BLOCK, pixels.shape[2] // BLOCK
    return pixels.mean(0)[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).mean((1, 3))
