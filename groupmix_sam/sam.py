"""Segment Anything with a light encoder: segment-anything's prompt encoder and mask decoder around one of ours."""

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any

import timm
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from . import encoders as _  # noqa: F401  registers the encoders in timm
from .encoders.backbone import PREFIX, SamBackbone
from .encoders.config import DEFAULT_ENCODER, EMBED_DIM, IMAGE_SIZE, SAM_MEAN, SAM_STD, check_img_size
from .errors import UnknownNameError, WeightsError
from .weights import SAM_VITS, find_weights, load_weights, origin_of, read_weights

__all__ = ["ENCODERS", "build_sam_groupmix", "sam_model_registry"]

ENCODERS = (
    DEFAULT_ENCODER,
    "gmf_sam_2282_512",
    "gmf_sam_2264",
    "gmf_sam_33124",
    "gmf_sam_3312",
    "gmf_sam_3344",
    "sam_resnet18",
    "sam_tiny_vit_5m",
)


def build_sam_groupmix(
    checkpoint: str | PathLike[str] | None = "default",
    *,
    encoder: str | None = None,
    image_size: int | None = None,
) -> Sam:
    """Return a `segment_anything` Sam in eval mode, for SamPredictor and SamAutomaticMaskGenerator.

    Args:
        checkpoint: "default" (the weights in this package), a file or a folder, "hf-hub:org/repo[@revision]", or None for
            an untrained model.
        encoder: A name out of `ENCODERS`, or "timm/" and the name of any timm backbone, for which there are no default
            weights. By default what the weights say that they are for; "gmf_sam_2282" of none.
        image_size: Side in pixels that images are resized and padded to, a multiple of 16. The weights fit every size and
            are at their best at the one that they were trained at, which is the default; 1024 of none.

    Raises:
        UnknownNameError: there is no such encoder.
        InvalidInputError: the image size cannot be used.
        WeightsError: the weights were not found, are damaged, or belong to another encoder.
    """
    checkpoint, encoder, image_size = _fill_in(checkpoint, encoder, image_size)
    if encoder not in (*ENCODERS, "gmf_sam_test") and not str(encoder).startswith(PREFIX):
        raise UnknownNameError.near("encoder", encoder, ENCODERS)
    image_size = check_img_size(image_size)
    image_encoder: Any = create_encoder(encoder, image_size)
    grid = image_size // image_encoder.embed_stride
    sam = Sam(
        image_encoder=image_encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBED_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=[255 * value for value in SAM_MEAN],
        pixel_std=[255 * value for value in SAM_STD],
    )
    if checkpoint is not None:
        load_weights(sam, checkpoint)
    return sam.eval()


def _fill_in(
    checkpoint: str | PathLike[str] | None, encoder: str | None, image_size: int | None
) -> tuple[str | PathLike[str] | None, str, int]:
    """Return the checkpoint, as a file if it had to be looked into, with the encoder and the image size that it is for."""
    name: str | None = DEFAULT_ENCODER
    size = IMAGE_SIZE
    if (encoder is None or image_size is None) and checkpoint is not None and checkpoint != "default":
        checkpoint = find_weights(checkpoint)
        name, size = origin_of(*read_weights(checkpoint))
    if encoder is None and name is None:
        raise WeightsError(f"{checkpoint} does not say which encoder it is for: pass encoder=.")
    if encoder is None and name in SAM_VITS.values():
        raise WeightsError(f"{checkpoint} holds segment-anything's {name}: load it with its sam_model_registry.")
    return checkpoint, str(name if encoder is None else encoder), size if image_size is None else image_size


def create_encoder(name: str, image_size: int) -> nn.Module:
    """Return an untrained encoder by its registered name, or by "timm/" and the name of a timm backbone."""
    if name.startswith(PREFIX):
        return SamBackbone(name.removeprefix(PREFIX), image_size)
    return timm.create_model(name, img_size=image_size)


class _Registry(dict[str, Callable[..., Sam]]):
    def __missing__(self, name: str) -> Callable[..., Sam]:
        raise UnknownNameError.near("model", name, self)


sam_model_registry = _Registry(
    {"default": build_sam_groupmix, **{name: partial(build_sam_groupmix, encoder=name) for name in ENCODERS}}
)
