"""Mask parity: how close an exported model's masks are to those of the model that it was made from."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError, ParityError
from ...masks import mask_iou
from ..predictor import Predictor

__all__ = ["DEFAULTS", "Thresholds", "check_parity", "measure_parity"]


# Masks in a hundred that may be worse than the lowest accepted: in INT8 a single bad one is a matter of chance, and more masks
# have a lower lowest (docs/research/2026-11-25-int8.md).
SPARED = 0.02


class Thresholds(NamedTuple):
    """What the masks' IoU must reach on average, and for all but one in fifty.

    Masks count that the PyTorch model scores `pred_iou_thresh` or more.
    """

    min_mean_iou: float = 0.97
    min_iou: float = 0.8
    pred_iou_thresh: float = 0.5


DEFAULTS = Thresholds()


def measure_parity(
    exact: Predictor,
    exported: Predictor,
    images: Iterable[NDArray[np.uint8]],
    pred_iou_thresh: float = DEFAULTS.pred_iou_thresh,
) -> dict[str, Any]:
    """Return how close two models' masks are: the mean IoU, the lowest, the lowest but for one mask in fifty, and each mask's.

    Each image gets nine boxes of half its sides and sixteen points, evenly spread. A box gives the single mask. A point
    gives the one of three that the exact model scores highest. Masks under 1/1000 of the image in both models do not count,
    nor do masks that the exact model scores under `pred_iou_thresh`: for a box around nothing, it guesses.

    Args:
        exact: The model in PyTorch, in fp32.
        exported: The other one.
        images: H x W x 3, uint8, RGB; read one at a time.
        pred_iou_thresh: Lowest predicted IoU of a mask that counts.

    Raises:
        InvalidInputError: no mask counts.
    """
    records: list[dict[str, Any]] = []
    count = 0
    for number, image in enumerate(images):
        count += 1
        height, width = image.shape[:2]
        exact.set_image(image)
        exported.set_image(image)
        fractions = np.array([(x, y) for y in (0, 0.25, 0.5) for x in (0, 0.25, 0.5)])
        boxes = np.concatenate([fractions, fractions + 0.5], axis=1) * [width, height, width, height]
        spread = (np.arange(4) + 0.5) / 4
        points = np.array([[(x * width, y * height)] for y in spread for x in spread])
        ones = np.ones((len(points), 1))
        expected, scores, _ = exact.predict_prompts(boxes=boxes, multimask_output=False)
        got, _, _ = exported.predict_prompts(boxes=boxes, multimask_output=False)
        trials = [("box", boxes[i].tolist(), scores[i, 0], expected[i, 0], got[i, 0]) for i in range(len(boxes))]
        expected, scores, _ = exact.predict_prompts(points, ones)
        got, _, _ = exported.predict_prompts(points, ones)
        for i, best in enumerate(scores.argmax(axis=1)):
            trials.append(("point", points[i, 0].tolist(), scores[i, best], expected[i, best], got[i, best]))
        for kind, where, score, a, b in trials:
            if score >= pred_iou_thresh and max(a.mean(), b.mean()) >= 0.001:
                records.append({"image": number, kind: where, "score": round(float(score), 4), "iou": round(mask_iou(a, b), 4)})
    if not records:
        raise InvalidInputError(
            f"no mask has a predicted IoU of {pred_iou_thresh:g}: give images with objects in them, or a lower pred_iou_thresh."
        )
    ious = [record["iou"] for record in records]
    return {
        "images": count,
        "masks": len(ious),
        "mean_iou": float(np.mean(ious)),
        "min_iou": min(ious),
        "low_iou": float(np.quantile(ious, SPARED, method="lower")),
        "each": records,
    }


def check_parity(report: dict[str, Any], thresholds: Thresholds) -> None:
    """Raise ParityError if a report of `measure_parity` misses the thresholds."""
    if not report["mean_iou"] >= thresholds.min_mean_iou or not report["low_iou"] >= thresholds.min_iou:
        raise ParityError(
            f"the exported model's masks differ too much from PyTorch's: over {report['masks']} masks the mean IoU is "
            f"{report['mean_iou']:.4f} (required: {thresholds.min_mean_iou}), and one in fifty has {report['low_iou']:.4f} or "
            f"less (required: {thresholds.min_iou}). Nothing was written. Use a higher precision, more images of your own, or "
            "lower thresholds."
        )
