"""Prompts in the loop: the student's features through the frozen decoder, against the teacher's (EdgeSAM, arXiv 2312.06660).

Here every mask token and every predicted IoU is learnt from the teacher's for the same prompt, so no mask has to be chosen.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.config import STRIDE
from .data import Maps
from .decoder import Decoded, Decoder, FrozenDecoder
from .recipe import Phase, Recipe

__all__ = ["boxes_of", "draw_points", "mask_losses", "teacher_mask_iou"]

POINTS = 4  # prompts by point of each image in a phase on masks, and as many by box at most


def draw_points(valid: Tensor, count: int, generator: torch.Generator, stride: int = STRIDE) -> Tensor:
    """Draw points, P x 2, x and y in pixels, where the grid of cells of `stride` pixels, h x w, is valid."""
    cells = valid.nonzero()
    drawn = cells[torch.randint(len(cells), (count,), generator=generator).to(cells.device)].flip(1)
    return (drawn + torch.rand(count, 2, generator=generator).to(cells.device)) * stride


def boxes_of(decoded: Decoded, stride: int = STRIDE) -> Tensor:
    """Return the boxes, P' x 4 in pixels of the padded input, of each point's best mask; those of no area are left out."""
    masks = best_of(decoded) > 0
    boxes = mask_boxes(masks, stride)
    return boxes[(boxes[:, 2:] - boxes[:, :2] > stride / 4).all(1)]


def best_of(decoded: Decoded) -> Tensor:
    """Return the logits, P x h x w, of the best mask for a point by predicted IoU."""
    rows = torch.arange(len(decoded.scores), device=decoded.scores.device)
    return decoded.logits[rows, decoded.scores[:, 1:].argmax(1) + 1]


def mask_boxes(masks: Tensor, stride: int) -> Tensor:
    """Return the boxes, P x 4 in pixels of the padded input, of masks, P x h x w; 0 of one that is empty.

    A mask has four pixels for a feature, which stands for `stride` pixels of the input.
    """
    sides = []
    for filled in (masks.any(1), masks.any(2)):  # columns, then rows
        places = torch.arange(filled.shape[1], device=masks.device)
        first = torch.where(filled, places, filled.shape[1]).amin(1)
        last = torch.where(filled, places, -1).amax(1) + 1
        sides.append((first.clamp(max=last), last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float() * (stride / 4)


def mask_losses(student: Decoded, teacher: Decoded, valid: Tensor) -> Tensor:
    """Return the sum of the masks' cross-entropy, their dice loss and the squared error of the predicted IoUs.

    `valid`, h x w on the features' grid, leaves out the padding.
    """
    weight = valid.float().repeat_interleave(4, 0).repeat_interleave(4, 1)
    errors = mask_errors(student.logits, teacher.logits, weight)
    return errors.mean() + F.mse_loss(student.scores.float(), teacher.scores.float())


def mask_errors(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Return the cross-entropy and the dice loss, summed, of logits, ... x h x w; both are 0 where they equal the teacher's.

    `weight`, h x w, leaves out the padding.
    """
    ours, theirs = student.float(), teacher.float()  # out of autocast's bf16
    guess, target = ours.sigmoid(), theirs.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(ours, target, reduction="none")
    doubt = F.binary_cross_entropy_with_logits(theirs, target, reduction="none")  # the teacher's own
    cross_entropy = ((entropy - doubt) * weight).sum((-2, -1)) / weight.sum()
    overlap = (guess * target * weight).sum((-2, -1))
    sizes = (guess.square() * weight).sum((-2, -1)) + (target.square() * weight).sum((-2, -1))
    return cross_entropy + 1 - (2 * overlap + 1) / (sizes + 1)


def mask_ious(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoUs of masks, ... x h x w, in pairs; 1 where both are empty."""
    union = (first | second).sum((-2, -1))
    return torch.where(union > 0, (first & second).sum((-2, -1)) / union.clamp(min=1), 1.0)


@torch.no_grad()
def teacher_mask_iou(
    student: Tensor, teacher: Tensor, valid: Tensor, decoder: Decoder, points: Tensor, teacher_decoder: Decoder | None = None
) -> Tensor:
    """Return the IoU, P, of the best mask (by predicted IoU) that each features give for a point; for P points of an image.

    It is 1 where both masks are empty.

    Args:
        student: 1 x 256 x h x w.
        teacher: The same; its masks are taken as the truth.
        valid: h x w, false where the input is padding.
        decoder: The student's decoder.
        points: P x 2, x and y in pixels of the padded input.
        teacher_decoder: The teacher's, if it is another one.
    """
    weight = valid.repeat_interleave(4, 0).repeat_interleave(4, 1)
    ours, theirs = decoder(student, points), (teacher_decoder or decoder)(teacher, points)
    return mask_ious((best_of(ours) > 0) & weight, (best_of(theirs) > 0) & weight)


@dataclass
class Objective:
    """The losses: on the features, on the hints while the run is young, and through the mask decoder where a phase asks for it.

    `variance` is the teacher's, by map, about its channels' means.
    """

    recipe: Recipe
    variance: dict[str, float]
    decoder: FrozenDecoder | None

    def __call__(
        self, outputs: Maps, batch: Maps, phase: Phase, remaining: float, part: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms for a batch, with `remaining` of the run to come; `part` seeds the prompts."""
        terms = {name: self.error(out, batch, name) for name, out in outputs.items()}
        loss = terms["features"]
        for name in terms.keys() - {"features"}:
            loss = loss + self.recipe.hint_weight * remaining * terms[name]
        if phase.target == "masks":
            terms["masks"] = self.masks(outputs["features"], batch, part)
            loss = loss + terms["masks"]
        return loss, terms

    def error(self, out: Tensor, batch: Maps, name: str) -> Tensor:
        """Return the mean error of a map, B x h x w x C, where the input is not padding."""
        out, target = out.float(), batch[name].float()  # out of autocast's bf16
        if self.recipe.loss == "huber" and name == "features":
            errors = F.huber_loss(out, target, reduction="none")
        else:
            errors = (out - target).square() / self.variance[name]
        weight = batch["valid"].unsqueeze(-1)
        return (errors * weight).sum() / (weight.sum() * out.shape[-1])

    def masks(self, features: Tensor, batch: Maps, part: int) -> Tensor:
        """Return the mean over images of the masks' losses, for points and for the boxes of what they show."""
        decoder = cast(FrozenDecoder, self.decoder)
        generator = torch.Generator().manual_seed(int(np.random.default_rng([self.recipe.seed, part]).integers(2**62)))
        losses = []
        for ours, theirs, valid in zip(features, batch["features"].float(), batch["valid"], strict=True):
            student, teacher = (m.permute(2, 0, 1)[None] for m in (ours, theirs))
            points = draw_points(valid, POINTS, generator, decoder.stride)
            with torch.no_grad():
                by_point = decoder(teacher, points=points)
                boxes = boxes_of(by_point, decoder.stride)
                by_box = decoder(teacher, boxes=boxes) if len(boxes) else None
            losses.append(mask_losses(decoder(student, points=points), by_point, valid))
            if by_box is not None:
                losses.append(mask_losses(decoder(student, boxes=boxes), by_box, valid))
        return torch.stack(losses).mean()
