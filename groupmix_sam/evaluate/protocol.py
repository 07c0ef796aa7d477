"""What is measured: which prompts, which of SAM's masks, which annotations."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.amg import calculate_stability_score

from ..errors import InvalidInputError, UnknownNameError
from ..inference.mask_predictor import MaskPredictor
from ..masks import Mask, mask_iou
from ..prompts import Prompt
from .metrics import innermost_pixel, next_click, random_pixel

__all__ = ["MASK_SELECTIONS", "PRESETS", "Answer", "Protocol", "predict_mask", "preset", "prompt_for", "simulate_clicks"]

MASK_SELECTIONS = {
    "single": "the mask for unambiguous prompts",
    "best-of-3": "of the three masks for ambiguous prompts, the one with the highest predicted IoU",
    "best-of-4": "of those three and the single one, the one with the highest predicted IoU",
    "oracle": "of the three, the one with the highest IoU with the truth, as a user would pick it",
    "stability": "of the three, the one that changes least when the threshold moves",
}


@dataclass(frozen=True)
class Protocol:
    """How a model is evaluated.

    Attributes:
        name: The name of its preset.
        prompts: "box", "point" (the innermost pixel), "random-point" (any inside), or "clicks-N" (the innermost pixel, then
            corrections at the largest error, up to N clicks in total).
        mask_selection: A key of `MASK_SELECTIONS`; None is "best-of-3" for one point, such as the first of several clicks, and
            "single" for any other prompt.
        crowds: Evaluate annotations of crowds too.
        min_mask_area: Leave out annotations with fewer pixels.
        resize: "sam", as the predictor resizes; or "nanosam": bicubic, sides cut and not rounded, and masks enlarged from
            256 x 256 in one step.
        seed: Seed of random points.
    """

    name: str = "sam"
    prompts: tuple[str, ...] = ("box", "point")
    mask_selection: str | None = None
    crowds: bool = False
    min_mask_area: int = 1
    resize: str = "sam"
    seed: int = 0

    def __post_init__(self) -> None:
        for prompt in self.prompts:
            clicks = prompt.removeprefix("clicks-")
            if prompt not in ("box", "point", "random-point") and not (clicks != prompt and clicks.isdecimal() and int(clicks)):
                raise InvalidInputError(f"the prompt is {prompt!r}: use 'box', 'point', 'random-point' or 'clicks-5', say.")
        if self.mask_selection is not None and self.mask_selection not in MASK_SELECTIONS:
            raise UnknownNameError.near("mask selection", self.mask_selection, MASK_SELECTIONS)
        if self.resize not in ("sam", "nanosam"):
            raise UnknownNameError.near("way to resize", self.resize, ("sam", "nanosam"))

    def selection_for(self, prompt: str) -> str:
        """Return how the mask is chosen for a prompt of this kind, one of `prompts` or a `Prompt.kind`.

        Without a `mask_selection` it is the rule of `is_ambiguous`: all kinds but "box" and "points" begin with one point.
        """
        return self.mask_selection or ("single" if prompt in ("box", "points") else "best-of-3")

    def record(self) -> dict[str, Any]:
        """Return what a result records, as JSON."""
        return {**asdict(self), "prompts": {prompt: self.selection_for(prompt) for prompt in self.prompts}}


PRESETS = {
    "sam": Protocol(),
    # As nanosam/tools/eval_coco.py, whose decoder gives all four masks. NanoSAM's figures and the paper's are made so.
    "nanosam": Protocol("nanosam", ("box",), "best-of-4", crowds=True, min_mask_area=0, resize="nanosam"),
}


def preset(name: str) -> Protocol:
    """Return the protocol of that name."""
    if name not in PRESETS:
        raise UnknownNameError.near("preset", name, PRESETS)
    return PRESETS[name]


@dataclass(frozen=True)
class Answer:
    """A mask, H x W, its predicted IoU, and its low-resolution logits, 1 x h x w, for the next prompt."""

    mask: Mask
    predicted_iou: float
    low_res_logits: NDArray[np.float32]


def predict_mask(
    predictor: MaskPredictor, prompt: Prompt, mask_selection: str, truth: Mask | None = None, low_res_logits: Any = None
) -> Answer:
    """Return a predictor's mask for a prompt.

    Args:
        predictor: The model, whose image is set.
        prompt: In the image's pixels.
        mask_selection: A key of `MASK_SELECTIONS`.
        truth: The true mask, for the oracle.
        low_res_logits: Those of the answer before.
    """
    given = prompt.arrays()
    if low_res_logits is not None:
        given["mask_input"] = low_res_logits

    def predict(multimask: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        return predictor.predict(**given, multimask_output=multimask, return_logits=mask_selection == "stability")

    if mask_selection == "best-of-4":  # SAM's decoder computes all four and returns the first or the others
        masks, predicted, logits = (np.concatenate(pair) for pair in zip(predict(False), predict(True), strict=True))
    else:
        masks, predicted, logits = predict(mask_selection != "single")
    scores = predicted
    if mask_selection == "stability":
        scores = calculate_stability_score(torch.from_numpy(masks), 0.0, 1.0).nan_to_num(0.0).numpy()  # of no pixel, 0 / 0
        masks = masks > 0
    elif mask_selection == "oracle":
        if truth is None:
            raise InvalidInputError("the oracle needs the truth: use another mask selection.")
        scores = np.array([mask_iou(mask, truth) for mask in masks])
    best = int(np.argmax(scores))
    return Answer(masks[best], float(predicted[best]), logits[best : best + 1])


def simulate_clicks(predictor: MaskPredictor, truth: Mask, clicks: int, mask_selection: str) -> tuple[Prompt, list[Answer]]:
    """Click on the innermost pixel of the truth, then on the largest error each time; return the clicks and each answer.

    There are at most `clicks` of them. `mask_selection` is for the first. Later ones take the single mask, with the logits of
    the answer before.
    """
    x, y = innermost_pixel(truth)
    points, labels = [(x, y)], [1]
    answers: list[Answer] = []
    while True:
        prompt = Prompt([[float(x), float(y)] for x, y in points], list(labels))
        if answers:
            answers.append(predict_mask(predictor, prompt, "single", truth, answers[-1].low_res_logits))
        else:
            answers.append(predict_mask(predictor, prompt, mask_selection, truth))
        correction = next_click(truth, answers[-1].mask, points) if len(points) < clicks else None
        if correction is None:
            return prompt, answers
        x, y, label = correction
        points.append((x, y))
        labels.append(label)


def prompt_for(kind: str, truth: Mask, box: list[float], seed: tuple[int, int]) -> Prompt:
    """Return a box or point for a mask; with `seed` a random point does not depend on the order of images."""
    if kind == "box":
        return Prompt(box=box)
    x, y = innermost_pixel(truth) if kind == "point" else random_pixel(truth, np.random.default_rng(seed))
    return Prompt([[float(x), float(y)]], [1])
