"""Prompts in the loop: the student's features through the frozen decoder, against the teacher's (EdgeSAM, arXiv 2312.06660).

Here every mask token and every predicted IoU is learnt from the teacher's for the same prompt, so no mask has to be chosen.
"""

from typing import NamedTuple

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.config import STRIDE

__all__ = ["Decoded", "Decoder", "boxes_of", "draw_points", "mask_agreement", "mask_losses"]


class Decoded(NamedTuple):
    """What the mask decoder says to P prompts: logits, P x 4 x h x w at a quarter of the input, and predicted IoUs, P x 4.

    The first of the four is the mask for prompts that mean one thing, the others are those for a single point.
    """

    logits: Tensor
    scores: Tensor


class Decoder(nn.Module):
    """segment-anything's prompt encoder and mask decoder, frozen."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder: PromptEncoder = sam.prompt_encoder
        self.mask_decoder: MaskDecoder = sam.mask_decoder
        self.eval().requires_grad_(False)

    def forward(self, features: Tensor, points: Tensor | None = None, boxes: Tensor | None = None) -> Decoded:
        """Decode prompts on one picture.

        Args:
            features: 1 x 256 x S/16 x S/16.
            points: P x 2, x and y in pixels of the padded input, each a prompt of its own on the foreground.
            boxes: P x 4, left, top, right, bottom in the same pixels.
        """
        prompt = None
        if points is not None:
            prompt = points[:, None], torch.ones(len(points), 1, device=points.device)
        sparse, dense = self.prompt_encoder(points=prompt, boxes=boxes, masks=None)
        return Decoded(
            *self.mask_decoder.predict_masks(
                image_embeddings=features,
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
            )
        )


def draw_points(valid: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw points, P x 2, x and y in pixels, where the grid of 16 x 16 pixels, h x w, is valid."""
    cells = valid.nonzero()
    drawn = cells[torch.randint(len(cells), (count,), generator=generator).to(cells.device)].flip(1)
    return (drawn + torch.rand(count, 2, generator=generator).to(cells.device)) * STRIDE


def boxes_of(decoded: Decoded) -> Tensor:
    """Return the boxes, P' x 4 in pixels of the padded input, of each point's best mask; those of no area are left out."""
    rows = torch.arange(len(decoded.scores), device=decoded.scores.device)
    masks = decoded.logits[rows, decoded.scores[:, 1:].argmax(1) + 1] > 0
    boxes = []
    for mask in masks:
        y, x = (mask.any(dim).nonzero().flatten() for dim in (1, 0))
        if len(y) > 1 and len(x) > 1:
            boxes.append(torch.stack([x[0], y[0], x[-1] + 1, y[-1] + 1]))
    # A mask's pixel stands for 4 x 4 of the input.
    return torch.stack(boxes).float() * 4 if boxes else torch.zeros(0, 4, device=masks.device)


def mask_losses(student: Decoded, teacher: Decoded, valid: Tensor) -> Tensor:
    """Return the sum of the masks' cross-entropy, their dice loss and the squared error of the predicted IoUs.

    `valid`, h x w on the grid of 16 x 16 pixels, leaves out the padding.
    """
    weight = valid.float().repeat_interleave(4, 0).repeat_interleave(4, 1)
    ours, theirs = student.logits.float(), teacher.logits.float()  # out of autocast's bf16
    guess, target = ours.sigmoid(), theirs.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(ours, target, reduction="none")
    doubt = F.binary_cross_entropy_with_logits(theirs, target, reduction="none")  # the teacher's own, so that equality is 0
    cross_entropy = ((entropy - doubt) * weight).sum((2, 3)) / weight.sum()
    overlap = (guess * target * weight).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / ((guess.square() * weight).sum((2, 3)) + (target.square() * weight).sum((2, 3)) + 1)
    return cross_entropy.mean() + dice.mean() + F.mse_loss(student.scores.float(), teacher.scores.float())


@torch.no_grad()
def mask_agreement(student: Tensor, teacher: Tensor, valid: Tensor, decoder: Decoder, points: Tensor) -> Tensor:
    """Return the IoU, P, of the best mask (by predicted IoU) that each features give for a point; for P points of a picture.

    It is 1 where both masks are empty.

    Args:
        student: 1 x 256 x S/16 x S/16.
        teacher: The same; its masks are taken as the truth.
        valid: S/16 x S/16, false where the input is padding.
        decoder: Their common decoder.
        points: P x 2, x and y in pixels of the padded input.
    """
    weight = valid.repeat_interleave(4, 0).repeat_interleave(4, 1)
    masks = []
    for features in (student, teacher):
        decoded = decoder(features, points)
        best = decoded.scores[:, 1:].argmax(1) + 1
        masks.append((decoded.logits[torch.arange(len(points), device=best.device), best] > 0) & weight)
    union = (masks[0] | masks[1]).sum((1, 2))
    return torch.where(union > 0, (masks[0] & masks[1]).sum((1, 2)) / union.clamp(min=1), 1.0)
