"""Encoding only what moved: a predictor for a fixed camera.

The encoder looks at a window around what changed, and the window's features take their place in those that are kept. What
changed is told block by block, against what each block looked like when it was last encoded, so that nothing creeps away
unseen; how much is noise is learnt from the camera's own frames.
"""

import time
import warnings
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..images import as_rgb
from ..inference import Predictor
from ..inference.backends import OnnxBackend, OpenvinoBackend, TorchBackend
from ..masks import mask_iou
from ..preprocess import check_aspect, pad_and_normalize, resize

__all__ = ["PartialPredictor"]

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
# Rows and columns.
Window = tuple[slice, slice]
# The first row and column of blocks, and those behind the last.
Hit = tuple[Any, ...]

# Pixels of the encoder's input: a block that is compared, and the step of a window's sides.
BLOCK, STEP = 8, 64
# A block changed if its mean difference, in levels, exceeds the noise by this factor and by this much.
NOISE_FACTOR, LEAST_CHANGE = 2.0, 2.0
# What the first two frames may differ by in the mean and still be called noise.
MOST_NOISE = 8.0
# Beyond this share of the frame a window saves nothing.
WORTH = 0.6
# Pixels around what changed that are encoded with it, at first and at most.
MARGIN, MOST_MARGIN = 64, 192
# Blocks around an object that is followed in which it is looked at what changed.
REACH = 4
# Cells of the features around a box that the decoder sees of an object that is followed.
DECODED = 8
# Partial encodings after which one is checked.
AUDIT_EVERY = 50


class PartialPredictor:
    """A `Predictor` that encodes only what changed since it was last encoded, for a camera that stands still.

    It takes a predictor's place in a `Tracker`. The first frame is encoded in full, padding and all, and so is one every
    `refresh` seconds. Where much of a frame has changed, as when the camera is bumped, all of it is encoded but the padding.
    With `follow` the decoder, too, sees only what is around the object.

    It audits itself: every so often a frame is encoded in full as well, and the masks of the last prompts are compared. If
    their mean IoU is below `min_iou`, the margin around what changed grows, and at its limit every frame is encoded in full. A
    warning says so.

    Args:
        predictor: A predictor in PyTorch, ONNX Runtime or OpenVINO.
        follow: Leave out what changed elsewhere than around the objects that a `Tracker` follows, until one is lost. The camera
            may move then.
        refresh: Seconds after which a frame is encoded in full.
        min_iou: The IoU with full encoding that an audit asks for.

    Raises:
        InvalidInputError: the predictor's encoder takes one size only.
    """

    def __init__(self, predictor: Predictor, *, follow: bool = False, refresh: float = 10.0, min_iou: float = 0.9) -> None:
        encoder = predictor.model.encoder
        if not isinstance(encoder, TorchBackend | OpenvinoBackend | OnnxBackend):
            raise InvalidInputError(
                "this encoder takes one size, and no window: give a Predictor of weights, or of an export to ONNX or OpenVINO."
            )
        self._predictor = predictor
        self._follow = follow
        self._watched: NDArray[Any] | None = None
        self._refresh = refresh
        self._min_iou = min_iou
        self._sides = range(STEP, predictor.image_size, STEP)
        if isinstance(encoder, OpenvinoBackend):
            # With the frame's own, few enough pairs for OpenVINO, which is compiled anew after MOST_SHAPES.
            step = max(STEP, predictor.image_size // 8)
            self._sides = range(step, predictor.image_size // 2 + 1, step)
        # The resized frame as each pixel was last encoded, and the frame before, both filled up to whole blocks.
        self._encoded: Pixels | None = None
        self._before: Pixels | None = None
        self._features: Floats = np.zeros((1, 256, 0, 0), np.float32)
        self._size = self._input_size = (0, 0)
        self._noise = 0.0
        self._since = 0.0
        self._windows = 0
        self._unchecked = 0
        self._prompts: dict[str, Any] | None = None
        self.margin = MARGIN
        self.always_full = False
        # The share of the encoder's input that was encoded for the last frame, and the IoU of the last audits.
        self.share = 1.0
        self.audits: deque[float] = deque(maxlen=100)
        try:
            self._windows_encoder = predictor
            if not isinstance(encoder, TorchBackend):
                self._windows_encoder = Predictor(replace(predictor.model, encoder=encoder.windows))
            self._windows_encoder.encode(np.zeros((1, 3, 2 * STEP, 2 * STEP), np.float32))
        except (AssertionError, RuntimeError) as e:  # of a TinyViT, which has attention windows of its own
            raise InvalidInputError(f"this encoder takes one size, and no window ({e}): give a GroupMixFormer's.") from e
        if follow and predictor.model.crop is not None:
            # An export loads now what it decodes parts by, not in the middle of a stream.
            predictor.model.crop(slice(0, 1), slice(0, 1))

    def set_image(self, image: NDArray[Any], image_format: str = "RGB") -> None:
        """Bring the embedding up to date with a frame; nothing is encoded where nothing changed.

        Args:
            image: H x W x 3, uint8; also H x W, H x W x 4 or uint16.
            image_format: "RGB" or "BGR".
        """
        array = as_rgb(image)
        if image_format == "BGR":
            array = np.ascontiguousarray(array[:, :, ::-1])
        check_aspect(array.shape[:2], self._predictor.image_size)
        resized = resize(array, self._predictor.image_size)
        pixels = _whole_blocks(resized)
        if self._encoded is None or self._size != array.shape[:2] or self.always_full:
            self._size = array.shape[0], array.shape[1]
            self._encode_all(array, pixels)
            return
        windows = self._windows_around(self._changed(pixels))
        if self._windows > 0 and time.monotonic() - self._since > self._refresh:
            self._encode_all(array, pixels)
            return
        self.share = 0.0
        if windows:
            self._features = self._features.copy()
            for window in windows:
                self._encode_window(resized, pixels, window)
            self._windows += 1
            self._unchecked += 1
            self._predictor.set_embedding(self._features, self._size)
        if self._unchecked >= AUDIT_EVERY:
            self._audit(array, pixels)

    def watch(self, boxes: NDArray[Any] | None) -> None:
        """Say where the objects are expected in the next frame, N x 4: x0, y0, x1, y1 in pixels; None if anywhere."""
        self._watched = boxes if self._follow else None

    def get_image_embedding(self) -> Floats:
        """Return the frame's embedding, 1 x 256 x G x G; the same array as before where nothing was encoded."""
        return self._features

    def predict_prompts(self, *prompts: Any, **options: Any) -> tuple[NDArray[Any], Floats, Floats]:
        """Do what `Predictor.predict_prompts` does."""
        self._prompts = {"prompts": prompts, "options": options}
        return self._decoder(options.get("boxes")).predict_prompts(*prompts, **options)

    def predict_logits(self, *prompts: Any, **options: Any) -> tuple[Floats, Floats]:
        """Do what `Predictor.predict_logits` does."""
        self._prompts = {"prompts": prompts, "options": options}
        return self._decoder(options.get("boxes")).predict_logits(*prompts, **options)

    def predict_single_mask(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.bool_], Floats]:
        """Do what `Predictor.predict_single_mask` does."""
        self._prompts = {"prompts": (point_coords, point_labels, boxes), "options": {"multimask_output": False}}
        return self._predictor.predict_single_mask(point_coords, point_labels, boxes)

    def _encode_all(self, image: Pixels, pixels: Pixels) -> None:
        whole = self._predictor.preprocess(image)
        self._input_size = whole.shape[1], whole.shape[2]
        self._predictor.set_embedding(self._predictor.encode(whole[None]), self._size)
        self._features = self._predictor.get_image_embedding()
        self._encoded, self._before = pixels.copy(), pixels
        self._since = time.monotonic()
        self._windows = 0
        self.share = 1.0

    def _encode_window(self, resized: Pixels, pixels: Pixels, window: Window) -> None:
        """Bring the features of a window up to date.

        Args:
            resized: The resized frame.
            pixels: The same, filled up to whole blocks.
            window: Rows and columns of the encoder's input.
        """
        assert self._encoded is not None
        model = self._predictor.model
        size = window[0].stop - window[0].start, window[1].stop - window[1].start
        part = pad_and_normalize(resized[window], size, model.mean, model.std)
        rows, columns = (slice(side.start // model.embed_stride, side.stop // model.embed_stride) for side in window)
        self._features[:, :, rows, columns] = self._windows_encoder.encode(part[None])
        self._encoded[window] = pixels[window]
        self.share += _area(window) / (self._input_size[0] * self._input_size[1])

    def _decoder(self, boxes: NDArray[Any] | None) -> Predictor:
        """Return what decodes prompts of these boxes: around objects that are followed it needs no more of the frame."""
        model = self._predictor.model
        if self._watched is None or boxes is None or model.crop is None:
            return self._predictor
        grid = [side // model.embed_stride for side in self._input_size]
        cells = np.asarray(boxes).reshape(-1, 4) * (model.image_size / max(self._size) / model.embed_stride)
        starts = np.maximum(np.floor(cells[:, [1, 0]].min(0)).astype(int) - DECODED, 0).tolist()
        stops = np.minimum(np.ceil(cells[:, [3, 2]].max(0)).astype(int) + DECODED, grid).tolist()
        sides = []
        for start, stop, size in zip(starts, stops, grid, strict=True):
            count = min(-(-(stop - start) // model.crop_step) * model.crop_step, size)
            start = min(start, size - count)
            sides.append(slice(start, start + count))
        window = sides[0], sides[1]
        if _area(window) > WORTH * grid[0] * grid[1]:
            return self._predictor
        masks, image, decoder = model.crop(*window)
        part = Predictor(replace(model, masks=masks, image=image, decoder=decoder, single_mask=None))
        part.set_embedding(self._features, self._size)
        return part

    def _changed(self, pixels: Pixels) -> NDArray[np.bool_]:
        """Return which blocks differ from when they were last encoded by more than noise.

        Noise is what most blocks differ by from the frame before, so that light that changes slowly is not taken for it.
        """
        assert self._encoded is not None
        assert self._before is not None
        noise = float(np.median(_differences(pixels, self._before)))
        # A frame that changes everywhere is no noise.
        limit = 2 * self._noise if self._noise else MOST_NOISE
        self._noise += (0.1 if self._noise else 1) * (min(noise, limit) - self._noise)
        self._before = pixels
        return _differences(pixels, self._encoded) > max(NOISE_FACTOR * self._noise, self._noise + LEAST_CHANGE)

    def _windows_around(self, changed: NDArray[np.bool_]) -> list[Window]:
        """Return what to encode: windows around what changed, or the whole frame if they are most of it."""
        hits: list[Hit] = []
        for region in self._regions(changed.shape):
            rows, columns = np.nonzero(changed[region])
            if len(rows):
                top, left = region[0].start, region[1].start
                hit = top + rows.min(), left + columns.min(), top + rows.max() + 1, left + columns.max() + 1
                for other in list(hits):  # one window that is no larger than both takes their place
                    both = (*np.minimum(hit[:2], other[:2]), *np.maximum(hit[2:], other[2:]))
                    if _area(self._window(both, changed.shape)) <= sum(
                        _area(self._window(each, changed.shape)) for each in (hit, other)
                    ):
                        hits.remove(other)
                        hit = both
                hits.append(hit)
        windows = [self._window(hit, changed.shape) for hit in hits]
        whole = self._window((0, 0, *changed.shape), changed.shape)
        return [whole] if sum(map(_area, windows)) > WORTH * _area(whole) else windows

    def _regions(self, shape: tuple[int, ...]) -> list[Window]:
        """Return the blocks that count: around what is watched, or all."""
        if self._watched is None:
            return [(slice(0, shape[0]), slice(0, shape[1]))]
        blocks = self._watched * (self._predictor.image_size / max(self._size) / BLOCK)
        starts = np.clip(np.floor(blocks[:, [1, 0]]).astype(int) - REACH, 0, shape)
        stops = np.clip(np.ceil(blocks[:, [3, 2]]).astype(int) + REACH, 0, shape)
        return [(slice(y0, y1), slice(x0, x1)) for (y0, x0), (y1, x1) in zip(starts.tolist(), stops.tolist(), strict=True)]

    def _window(self, hit: Hit, shape: tuple[int, ...]) -> Window:
        """Return the rows and columns to encode for blocks that changed, with the margin, of sides that the encoder takes."""
        window = []
        for first, stop, count, size in zip(hit[:2], hit[2:], shape, self._input_size, strict=True):
            limit = min(size, -(-count * BLOCK // STEP) * STEP)
            start = max(0, int(first) * BLOCK - self.margin)
            needed = int(stop) * BLOCK + self.margin - start
            side = min((side for side in self._sides if needed <= side < limit), default=limit)
            start = min(start // 16 * 16, limit - side)
            window.append(slice(start, start + side))
        return window[0], window[1]

    def _audit(self, image: Pixels, pixels: Pixels) -> None:
        """Encode the frame in full as well, and compare the masks of the last prompts."""
        asked = self._prompts
        partial = None if asked is None else self.predict_prompts(*asked["prompts"], **asked["options"])[0]
        self._encode_all(image, pixels)
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


def _area(window: Window) -> int:
    return (window[0].stop - window[0].start) * (window[1].stop - window[1].start)


def _whole_blocks(pixels: Pixels) -> Pixels:
    """Return pixels, H x W x 3, with zeros at the bottom and the right up to whole blocks."""
    height, width = (-(-side // BLOCK) * BLOCK for side in pixels.shape[:2])
    out = np.zeros((height, width, 3), np.uint8)
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def _differences(a: Pixels, b: Pixels) -> Floats:
    """Return the mean difference of each block, in levels, over pixels and colours."""
    rows, columns = a.shape[0] // BLOCK, a.shape[1] // BLOCK
    difference = np.maximum(a, b) - np.minimum(a, b)
    sums = difference.reshape(rows, BLOCK, -1).sum(1, dtype=np.uint16).reshape(rows, columns, -1).sum(2, dtype=np.uint32)
    return sums.astype(np.float32) / (3 * BLOCK**2)
