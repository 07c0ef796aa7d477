"""What the SAM encoders of every family share: SAM's normalisation, the default pretrained config, the size checks."""

import operator
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidInputError

__all__ = [
    "DEFAULT_ENCODER",
    "EMBED_DIM",
    "IMAGE_SIZE",
    "OWN_STRIDES",
    "SAM_MEAN",
    "SAM_STD",
    "STRIDE",
    "check_embed_stride",
    "check_img_size",
    "check_input",
    "encoder_weights",
    "own_stride",
    "pretrained_file",
    "sam_cfg",
]

DEFAULT_ENCODER = "gmf_sam_2282"
IMAGE_SIZE = 1024
STRIDE = 16
EMBED_DIM = 256
# Of the features of encoders that are not made for STRIDE.
OWN_STRIDES = {"gmf_sam_2282_512": 8}
# segment-anything's pixel_mean and pixel_std, RGB, divided by 255.
SAM_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
SAM_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


def sam_cfg(**kwargs: Any) -> dict[str, Any]:
    """Return a timm pretrained config for a SAM encoder: 3 x 1024 x 1024, SAM's mean and std, no classifier."""
    return {
        "num_classes": 0,
        "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
        "min_input_size": (3, STRIDE, STRIDE),
        "fixed_input_size": False,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": SAM_MEAN,
        "std": SAM_STD,
        "license": "apache-2.0",
        **kwargs,
    }


def pretrained_file(name: str) -> str:
    """Return where the wheel keeps the weights of an encoder."""
    return str(Path(__file__).parents[1] / "pretrained" / f"{name}.safetensors")


def check_img_size(img_size: int | tuple[int, int]) -> int:
    """Return the side of a square input in pixels, as the int that `SamPredictor` needs.

    Raises:
        InvalidInputError: not one positive multiple of 16, or two sides that differ.
    """
    if isinstance(img_size, (tuple, list)):
        if len(img_size) != 2 or img_size[0] != img_size[1]:
            raise InvalidInputError(
                f"the image size is {img_size!r}, but SAM pads images to a square: give one side, such as 1024. "
                "A tensor that is passed to the encoder itself may have any height and width that are multiples of 16."
            )
        img_size = img_size[0]
    try:
        img_size = operator.index(img_size)
    except TypeError:
        raise InvalidInputError(f"the image size is {img_size!r}: give a whole number of pixels, such as 1024.") from None
    if img_size <= 0 or img_size % STRIDE:
        lower = max(STRIDE, img_size // STRIDE * STRIDE)
        raise InvalidInputError(
            f"the image size is {img_size}, which is no positive multiple of {STRIDE}: use {lower} or {lower + STRIDE}."
        )
    return img_size


def check_embed_stride(embed_stride: int) -> int:
    """Return the stride of an encoder's features; raise InvalidInputError unless it is 8 or 16."""
    if embed_stride not in (8, STRIDE):
        raise InvalidInputError(f"embed_stride is {embed_stride!r}: use 8 or {STRIDE}.")
    return embed_stride


def own_stride(encoder: str) -> int:
    """Return the stride of an encoder's features, unless it is built with another one."""
    return OWN_STRIDES.get(encoder, STRIDE)


def check_input(x: torch.Tensor) -> None:
    """Raise InvalidInputError unless x is B x C x H x W with H and W multiples of 16."""
    if x.ndim != 4:
        raise InvalidInputError(f"the input has shape {tuple(x.shape)}: give a batch of images, B x C x H x W.")
    height, width = x.shape[-2:]
    if height % STRIDE or width % STRIDE or not height or not width:
        raise InvalidInputError(
            f"the input is {height} x {width} pixels, which are no positive multiples of {STRIDE}: "
            "pad it at the bottom and the right, as segment_anything's Sam.preprocess does."
        )


def encoder_weights(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the encoder's part of a whole Sam's weights, or the weights as they are; a checkpoint's "model" is looked into."""
    if isinstance(state_dict.get("model"), dict):
        state_dict = state_dict["model"]
    encoder = {k.removeprefix("image_encoder."): v for k, v in state_dict.items() if k.startswith("image_encoder.")}
    return encoder or state_dict
