"""Segment Anything with a light encoder: segment-anything's prompt encoder and mask decoder around one of ours."""

from collections.abc import Callable
from os import PathLike
from typing import Any

import timm
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from . import encoders as _  # noqa: F401  registers the encoders in timm
from .encoders.backbone import PREFIX, SamBackbone
from .encoders.config import DEFAULT_ENCODER, EMBED_DIM, SAM_MEAN, SAM_STD, STRIDE, check_img_size, own_stride
from .errors import InvalidInputError, UnknownNameError, WeightsError
from .weights import SAM_VITS, SHIPPED, Origin, WeightsFile, load_weights, open_weights, origin_of

__all__ = ["ENCODERS", "build_sam_groupmix", "create_encoder", "sam_model_registry"]

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
    checkpoint: str | PathLike[str] | WeightsFile | None = "default",
    *,
    encoder: str | None = None,
    image_size: int | None = None,
    embed_stride: int | None = None,
) -> Sam:
    """Return a `segment_anything` Sam in eval mode, for SamPredictor and SamAutomaticMaskGenerator.

    Args:
        checkpoint: "default" or "fast" (the weights in this package), a file or a folder, "hf-hub:org/repo[@revision]", what
            `open_weights` returned, or None for an untrained model.
        encoder: A name out of `ENCODERS`, or "timm/" and the name of any timm backbone, for which there are no default
            weights. By default the encoder stored in the weights; "gmf_sam_2282" if there are none.
        image_size: Side in pixels that images are resized and padded to, a multiple of 16. The weights fit every size and
            are at their best at the one that they were trained at, which is the default; without weights the encoder's own.
        embed_stride: Stride of the features, 16 or 8; by default that of the weights or the encoder. 8 is for images of half
            the size, with GroupMixFormers and timm backbones.

    Raises:
        UnknownNameError: there is no such encoder.
        InvalidInputError: the image size or the stride cannot be used.
        WeightsError: the weights were not found, are damaged, or belong to another encoder.
    """
    if encoder is not None and encoder not in (*ENCODERS, "gmf_sam_test") and not str(encoder).startswith(PREFIX):
        raise UnknownNameError.near("encoder", encoder, ENCODERS)
    weights = open_weights(checkpoint, encoder) if isinstance(checkpoint, (str, PathLike)) else _checked(checkpoint)
    origin = Origin(DEFAULT_ENCODER) if weights is None else origin_of(weights)
    if encoder is not None and encoder != origin.encoder:
        origin = Origin(encoder)  # the sizes in the header are those of another one
    image_encoder: Any = create_encoder(
        _encoder_of(origin, weights),
        origin.image_size if image_size is None else image_size,
        origin.embed_stride if embed_stride is None else embed_stride,
    )
    size, grid = image_encoder.img_size, image_encoder.img_size // image_encoder.embed_stride
    sam = Sam(
        image_encoder=image_encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
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
    if weights is not None:
        load_weights(sam, weights)
    return sam.eval()


def _checked(weights: WeightsFile | None) -> WeightsFile | None:
    if weights is not None and not isinstance(weights, WeightsFile):
        raise InvalidInputError(f"checkpoint is {weights!r}: give 'default', 'fast', a path, 'hf-hub:org/repo' or None.")
    return weights


def _encoder_of(origin: Origin, weights: WeightsFile | None) -> str:
    """Return the name of the encoder to build."""
    if origin.encoder is None:
        raise WeightsError(f"{weights and weights.path} does not say which encoder it is for: pass encoder=.")
    if origin.encoder in SAM_VITS.values():
        raise WeightsError(
            f"{weights and weights.path} holds segment-anything's {origin.encoder}: load it with its sam_model_registry."
        )
    if origin.encoder not in (*ENCODERS, "gmf_sam_test") and not origin.encoder.startswith(PREFIX):
        raise UnknownNameError.near("encoder", origin.encoder, ENCODERS)
    return origin.encoder


def create_encoder(name: str, image_size: int | None = None, embed_stride: int | None = None) -> nn.Module:
    """Return an untrained encoder by its registered name, or by "timm/" and the name of a timm backbone.

    Args:
        name: Its name.
        image_size: Side in pixels that images are resized to; by default the encoder's own.
        embed_stride: Stride of its features; by default the encoder's own.

    Raises:
        InvalidInputError: the image size or the stride cannot be used.
    """
    kwargs: dict[str, Any] = {} if image_size is None else {"img_size": check_img_size(image_size)}
    if embed_stride not in (None, own_stride(name)):  # what is the default is not kept as an argument
        kwargs["embed_stride"] = embed_stride
    if name.startswith(PREFIX):
        return SamBackbone(name.removeprefix(PREFIX), **kwargs)
    if not name.startswith("gmf_") and "embed_stride" in kwargs:
        raise InvalidInputError(f"embed_stride is {embed_stride}: the features of {name} have stride {STRIDE} alone.")
    return timm.create_model(name, **kwargs)


class _Registry(dict[str, Callable[..., Sam]]):
    def __missing__(self, name: str) -> Callable[..., Sam]:
        raise UnknownNameError.near("model", name, self)


def _builder(default: str | None, encoder: str | None = None) -> Callable[..., Sam]:
    def build(checkpoint: str | PathLike[str] | None = default, **kwargs: Any) -> Sam:
        return build_sam_groupmix(checkpoint, encoder=encoder, **kwargs)

    return build


# As in segment-anything, an encoder's name builds a model without weights unless a checkpoint is given.
sam_model_registry = _Registry(
    {name: _builder(name) for name in SHIPPED} | {name: _builder(None, encoder=name) for name in ENCODERS}
)
