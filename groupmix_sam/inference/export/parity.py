"""Whether an exported model's masks are those of the model that it was made from, told by their IoU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError, ParityError
from ...masks import mask_iou
from ..predictor import Predictor

__all__ = ["DEFAULTS", "Thresholds", "check_parity", "measure_parity"]


class Thresholds(NamedTuple):
    """What the IoUs must reach, their mean and the least of them, of masks that the exact model scores as high as `score`."""

    mean: float = 0.97
    least: float = 0.8
    score: float = 0.5


DEFAULTS = Thresholds()


def measure_parity(
    exact: Predictor, exported: Predictor, images: Sequence[NDArray[np.uint8]], pred_iou_thresh: float = DEFAULTS.score
) -> dict[str, Any]:
    """Return how alike two models' masks are, over images and prompts: the mean and least IoU, and every one of them.

    Prompts are nine boxes of half the image's sides and sixteen points, evenly spread. Of a box the single mask is taken; of
    a point the one of three that the exact model scores best. Left out are masks under 1/1000 of the image in both models,
    and those to which the exact model itself gives a predicted IoU under `least_score`: around a box of nothing, it guesses.
    """
    records: list[dict[str, Any]] = []
    for number, image in enumerate(images):
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
            "the model is sure of no mask on these images: give others, with instances in them, or a lower score."
        )
    ious = [record["iou"] for record in records]
    return {"images": len(images), "masks": len(ious), "mean": float(np.mean(ious)), "least": min(ious), "each": records}


def check_parity(report: dict[str, Any], thresholds: Thresholds) -> None:
    """Raise ParityError if the masks do not hold."""
    if not report["mean"] >= thresholds.mean or not report["least"] >= thresholds.least:
        raise ParityError(
            f"the exported model's masks do not hold: their IoU to the fp32 model's is {report['mean']:.4f} in the mean and "
            f"{report['least']:.4f} at least, of {report['masks']} masks, where {thresholds.mean} and {thresholds.least} are "
            "asked for. Nothing was written. Use a higher precision, more images of your own, or lower thresholds."
        )
