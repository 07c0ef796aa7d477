"""Whether an exported model's masks are those of the model that it was made from, told by their IoU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, ParityError
from .predictor import Predictor

__all__ = ["Thresholds", "check_parity", "mask_iou", "measure_parity"]


class Thresholds(NamedTuple):
    """What the IoUs must reach: their mean and the least of them."""

    mean: float = 0.97
    least: float = 0.8


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks, 1 of two empty ones."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def measure_parity(exact: Predictor, exported: Predictor, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """Return how alike two models' masks are, over pictures and prompts: the mean and least IoU, and every one of them.

    Prompts are nine boxes of half the picture's sides and sixteen points, evenly spread. Of a box the single mask is taken; of
    a point the one of three that the exact model scores best. A mask under 1/1000 of the picture, in both models, is left out:
    of a few pixels the IoU says nothing.
    """
    records: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        exact.set_image(picture)
        exported.set_image(picture)
        fractions = np.array([(x, y) for y in (0, 0.25, 0.5) for x in (0, 0.25, 0.5)])
        boxes = np.concatenate([fractions, fractions + 0.5], axis=1) * [width, height, width, height]
        spread = (np.arange(4) + 0.5) / 4
        points = np.array([[(x * width, y * height)] for y in spread for x in spread])
        ones = np.ones((len(points), 1))
        expected, _, _ = exact.predict_batch(boxes=boxes, multimask_output=False)
        got, _, _ = exported.predict_batch(boxes=boxes, multimask_output=False)
        pairs = [("box", box.tolist(), a[0], b[0]) for box, a, b in zip(boxes, expected, got, strict=True)]
        expected, scores, _ = exact.predict_batch(points, ones)
        got, _, _ = exported.predict_batch(points, ones)
        best = scores.argmax(axis=1)
        pairs += [("point", p[0].tolist(), a[i], b[i]) for p, i, a, b in zip(points, best, expected, got, strict=True)]
        for kind, where, a, b in pairs:
            if max(a.mean(), b.mean()) >= 0.001:
                records.append({"picture": number, kind: where, "iou": round(mask_iou(a, b), 4)})
    if not records:
        raise InvalidInputError("no mask is large enough to be compared: give pictures with things in them.")
    ious = [record["iou"] for record in records]
    return {"pictures": len(pictures), "masks": len(ious), "mean": float(np.mean(ious)), "least": min(ious), "each": records}


def check_parity(report: dict[str, Any], thresholds: Thresholds) -> None:
    """Raise ParityError if the masks do not hold."""
    if not report["mean"] >= thresholds.mean or not report["least"] >= thresholds.least:
        raise ParityError(
            f"the exported model's masks do not hold: their IoU to the fp32 model's is {report['mean']:.4f} in the mean and "
            f"{report['least']:.4f} at least, of {report['masks']} masks, where {thresholds.mean} and {thresholds.least} are "
            "asked for. Nothing was written. Use a higher precision, more pictures of your own, or lower thresholds."
        )
