"""From an image and prompts, or an image alone, to the instances in it."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

from ..annotations.types import Instance
from ..devices import free_memory
from ..errors import InvalidInputError
from ..images import as_rgb
from ..masks import decode_rle
from ..preprocess import check_aspect
from ..prompts import Prompt
from .mask_predictor import MaskPredictor
from .predictor import Predictor

__all__ = ["everything", "everything_costs", "segment"]

# SamAutomaticMaskGenerator's points at a time, and as many pixels of logits as they have on an image of 1024 x 1024.
POINTS_AT_ONCE = 64
PIXELS_AT_ONCE = POINTS_AT_ONCE * 1024 * 1024
# What it holds of a point on a GPU at once: of each pixel, for three masks as logits and as bools, and of decoding.
PIXEL_BYTES, POINT_BYTES = 48, 50_000_000


def segment(
    predictor: MaskPredictor, image: NDArray[Any], prompts: Sequence[Prompt], category: str = "object"
) -> list[Instance]:
    """Return an instance for each prompt, with the mask that `is_ambiguous` describes.

    Args:
        predictor: A `SamPredictor`, a `Predictor`, or another with their methods.
        image: H x W x 3, uint8, RGB; also what else `as_rgb` takes, such as grayscale, H x W.
        prompts: In the image's pixels.
        category: The name of what prompts show that have no category of their own.

    Raises:
        InvalidInputError: there is no prompt, or one is outside the image.
    """
    if not prompts:
        raise InvalidInputError("nothing says what to segment: give a prompt.")
    image = as_rgb(image)
    size = image.shape[0], image.shape[1]
    if isinstance(predictor, SamPredictor):  # the other one checks for itself
        check_aspect(size, predictor.model.image_encoder.img_size)
    for prompt in prompts:
        prompt.check(size)
    predictor.set_image(image)
    instances = []
    for prompt in prompts:
        masks, scores, _ = predictor.predict(**prompt.arrays(), multimask_output=prompt.ambiguous)
        best = int(scores.argmax())
        given = replace(prompt, category=None)  # which the instance has
        instances.append(Instance(masks[best], float(scores[best]), prompt.category or category, given))
    return instances


def everything(
    model: Sam | Predictor,
    image: NDArray[Any],
    *,
    points_per_side: int = 32,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    min_mask_area: int = 0,
    crop_n_layers: int = 0,
    category: str = "object",
) -> list[Instance]:
    """Return all instances in an image, the largest first, by segment-anything's `SamAutomaticMaskGenerator`.

    Args:
        model: A Sam; or a `Predictor`, which decodes in a fraction of the time; its masks differ slightly along outlines.
        image: H x W x 3, uint8, RGB; also what else `as_rgb` takes, such as grayscale, H x W.
        points_per_side: Points per side of the prompt grid.
        pred_iou_thresh: Drop masks with a lower predicted IoU.
        stability_score_thresh: Drop masks with a lower stability score, which compares them at two thresholds.
        min_mask_area: Drop masks of fewer pixels; segment-anything's `min_mask_region_area` removes parts of masks instead.
        crop_n_layers: Search crops of the image too: layer n has 4^n of them.
        category: The name of what is found.

    Raises:
        InvalidInputError: a setting that cannot be used, or the image is too narrow.
    """
    everything_costs(points_per_side, crop_n_layers)
    if min_mask_area < 0:
        raise InvalidInputError(f"min_mask_area is {min_mask_area}: give 0 or more pixels.")
    for name, value in (("pred_iou_thresh", pred_iou_thresh), ("stability_score_thresh", stability_score_thresh)):
        if not 0 <= value <= 1:
            raise InvalidInputError(f"{name} is {value}: give a number from 0 to 1.")
    image = as_rgb(image)
    height, width = image.shape[:2]
    image_size = model.image_encoder.img_size if isinstance(model, Sam) else model.image_size
    check_aspect((height, width), image_size)
    generator = _Generator(
        model,
        points_per_side=points_per_side,
        points_per_batch=points_at_once(height, width, model.device if isinstance(model, Sam) else model.model.device),
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        crop_n_layers=crop_n_layers,
        output_mode="uncompressed_rle",
    )
    found = [entry for entry in generator.generate(image) if entry["area"] >= max(min_mask_area, 1)]
    return [
        Instance(
            decode_rle(entry["segmentation"]),
            float(entry["predicted_iou"]),
            category,
            Prompt(np.asarray(entry["point_coords"]).tolist()),
        )
        for entry in sorted(found, key=lambda entry: -entry["area"])
    ]


def points_at_once(height: int, width: int, device: torch.device) -> int:
    """Return how many points are decoded at a time: masks are as large as the image, and the memory stays the same."""
    free = free_memory(device)
    fitting = PIXELS_AT_ONCE // (height * width)
    if free is not None:
        fitting = free // 2 // (height * width * PIXEL_BYTES + POINT_BYTES)
    return max(1, min(POINTS_AT_ONCE, fitting))


class _Generator(SamAutomaticMaskGenerator):  # type: ignore[misc]  # segment-anything has no types
    def __init__(self, model: Sam | Predictor, **settings: Any) -> None:
        if isinstance(model, Sam):
            super().__init__(model, **settings)
        else:
            adapter = _SamPredictorAdapter(model)
            super().__init__(adapter, **settings)
            self.predictor = adapter

    def _process_crop(self, *args: Any) -> Any:
        data = super()._process_crop(*args)
        # Where nothing is found, segment-anything's are of another shape, which it cannot concatenate.
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
        return data


class _SamPredictorAdapter:
    """A Predictor where SamAutomaticMaskGenerator looks for a Sam and a SamPredictor; masks stay on its device."""

    # Of the points.
    device = torch.device("cpu")

    def __init__(self, predictor: Predictor) -> None:
        predictor = Predictor(predictor.model)  # the caller's keeps its image
        self.set_image, self.reset_image = predictor.set_image, predictor.reset_image
        self.predict_tensors, self.mask_threshold = predictor.predict_tensors, predictor.mask_threshold
        self.image_encoder = SimpleNamespace(img_size=predictor.image_size)
        self.model = self.transform = self

    def apply_coords(self, points: NDArray[np.float64], _: tuple[int, int]) -> NDArray[np.float64]:
        """Return points as they are: a Predictor takes the image's pixels."""
        return points

    def predict_torch(
        self, points: Tensor, labels: Tensor, multimask_output: bool, return_logits: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answer as SamPredictor does."""
        return self.predict_tensors(
            points.numpy(), labels.numpy(), multimask_output=multimask_output, return_logits=return_logits
        )


def everything_costs(points_per_side: int = 32, crop_n_layers: int = 0) -> tuple[int, int]:
    """Return what `everything` asks for an image: how many passes of the encoder, and how many prompts."""
    if points_per_side < 1 or crop_n_layers < 0:
        raise InvalidInputError(
            f"points_per_side is {points_per_side} and crop_n_layers is {crop_n_layers}: give 1 or more, and 0 or more."
        )
    parts = sum(4**layer for layer in range(crop_n_layers + 1))
    return parts, parts * points_per_side**2
