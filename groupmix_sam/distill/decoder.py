"""The frozen prompt encoder and mask decoder, through which masks are learnt."""

from typing import NamedTuple

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from torch import Tensor, nn

__all__ = ["Decoded", "FrozenDecoder"]


class Decoded(NamedTuple):
    """What the mask decoder says to P prompts: logits, P x 4 x 4h x 4w on features of h x w, and predicted IoUs, P x 4.

    The first of the four is the mask for prompts that mean one instance, the others are those for a single point.
    """

    logits: Tensor
    scores: Tensor


class FrozenDecoder(nn.Module):
    """segment-anything's prompt encoder and mask decoder, frozen."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder: PromptEncoder = sam.prompt_encoder
        self.mask_decoder: MaskDecoder = sam.mask_decoder
        self.eval().requires_grad_(False)

    @property
    def stride(self) -> int:
        """Return the side in pixels of the cell of the input that a feature stands for: four pixels of a mask a side."""
        return self.prompt_encoder.input_image_size[0] // self.prompt_encoder.image_embedding_size[0]

    def forward(self, features: Tensor, points: Tensor | None = None, boxes: Tensor | None = None) -> Decoded:
        """Decode prompts on one image.

        Args:
            features: 1 x 256 x h x w.
            points: P x 2, x and y in pixels of the padded input, each a prompt of its own on the foreground.
            boxes: P x 4, x0, y0, x1, y1 in the same pixels.
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
