"""The prompt encoder and the mask decoder in training: frozen, for masks to be learnt through or from, and learning."""

from copy import deepcopy
from typing import NamedTuple

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from torch import Tensor, nn

__all__ = ["Decoded", "Decoder", "FrozenDecoder", "TrainedDecoder"]


class Decoded(NamedTuple):
    """What the mask decoder says to P prompts: logits, P x 4 x 4h x 4w on features of h x w, and predicted IoUs, P x 4.

    The first of the four is the mask for prompts that mean one instance, the others are those for a single point.
    """

    logits: Tensor
    scores: Tensor


class Decoder(nn.Module):
    """segment-anything's prompt encoder and mask decoder."""

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    @property
    def stride(self) -> int:
        """Return the side in pixels of the cell of the input that a feature stands for; in a mask it is 4 x 4 pixels."""
        return int(self.prompt_encoder.input_image_size[0] // self.prompt_encoder.image_embedding_size[0])

    def forward(
        self,
        features: Tensor,
        points: Tensor | None = None,
        boxes: Tensor | None = None,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Decoded:
        """Decode prompts on one image.

        Args:
            features: 1 x 256 x h x w: the whole grid, or its upper left part, so that nothing attends to the padding.
            points: P x K x 2, x and y in pixels of the padded input; P x 2 for one on the foreground each.
            boxes: P x 4, x0, y0, x1, y1 in the same pixels.
            labels: P x K, 1 for the foreground and 0 for the background; by default all are 1.
            masks: P x 1 x 4h x 4w, logits of masks that are to be corrected.
        """
        prompt = None
        if points is not None:
            points = points if points.ndim == 3 else points[:, None]
            prompt = points, torch.ones_like(points[..., 0]) if labels is None else labels
        sparse, dense = self.prompt_encoder(points=prompt, boxes=boxes, masks=masks)
        rows, columns = features.shape[-2:]
        return Decoded(
            *self.mask_decoder.predict_masks(
                image_embeddings=features,
                image_pe=self.prompt_encoder.get_dense_pe()[..., :rows, :columns],
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense[..., :rows, :columns],
            )
        )


class FrozenDecoder(Decoder):
    """Copies of a Sam's prompt encoder and mask decoder, frozen."""

    def __init__(self, sam: Sam) -> None:
        super().__init__(deepcopy(sam.prompt_encoder), deepcopy(sam.mask_decoder))
        self.eval().requires_grad_(False)


class TrainedDecoder(Decoder):
    """Copies of a Sam's prompt encoder, frozen, and mask decoder, which learns.

    Its head for the predicted IoUs sees the token without its gradient: what it learns moves no mask.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__(deepcopy(sam.prompt_encoder), deepcopy(sam.mask_decoder))
        self.prompt_encoder.requires_grad_(False)
        self.mask_decoder.requires_grad_(True)
        self.mask_decoder.iou_prediction_head.register_forward_pre_hook(lambda _module, args: (args[0].detach(),))
