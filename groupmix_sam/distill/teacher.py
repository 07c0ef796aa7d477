"""The teacher, MobileSAM's encoder, and the cache of what it says of each picture."""

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..encoders.config import STRIDE
from ..encoders.tiny_vit import checkpoint_filter_fn
from ..errors import ImageReadError, InvalidInputError, WeightsError
from ..images import read_image
from ..weights import find_weights, read_weights, sha256
from .data import Maps, pad_and_normalize, picture_key

__all__ = ["Teacher", "cache_features", "load_teacher"]

ENCODER = "sam_tiny_vit_5m"


class Teacher(nn.Module):
    """MobileSAM's encoder, with two of its maps on the way: the third stage's input and output, 160 channels each.

    `key` tells it from other teachers in a cache.
    """

    def __init__(self, encoder: nn.Module, key: str) -> None:
        super().__init__()
        self.key = key
        self.encoder = encoder.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Maps:
        """Map B x 3 x H x W to maps of B x C x H/16 x W/16."""
        maps: Maps = {}
        stage = cast(Any, self.encoder).stages[2]
        taps = {"hint_in": stage.downsample, "hint_out": stage}
        handles = [
            module.register_forward_hook(lambda _m, _i, out, name=name: maps.__setitem__(name, out))
            for name, module in taps.items()
        ]
        try:
            return {"features": self.encoder(x), **maps}
        finally:
            for handle in handles:
                handle.remove()


def load_teacher(checkpoint: str | PathLike[str]) -> tuple[Teacher, dict[str, Tensor]]:
    """Return MobileSAM's encoder and all of MobileSAM's weights, by its own names.

    Args:
        checkpoint: `mobile_sam.pt`, or the same as safetensors; a path or "hf-hub:org/repo[@revision]".

    Raises:
        WeightsNotFoundError: there is nothing where `checkpoint` points.
        WeightsError: it is not MobileSAM.
    """
    path = find_weights(checkpoint, ENCODER)
    state_dict, _ = read_weights(path)
    encoder = timm.create_model(ENCODER)
    try:
        encoder.load_state_dict(checkpoint_filter_fn(state_dict, encoder))
    except RuntimeError as e:
        raise WeightsError(f"{path} is not MobileSAM, the teacher: give its mobile_sam.pt or that as safetensors.") from e
    if not any(k.startswith("image_encoder.layers.") for k in state_dict):
        raise WeightsError(
            f"{path} has not MobileSAM's own names, by which the student starts from it: give its mobile_sam.pt."
        )
    return Teacher(encoder, sha256(path)), state_dict


def cache_features(
    pictures: Sequence[Path], teacher: Teacher, folder: str | PathLike[str], image_size: int = 1024
) -> tuple[list[Path], list[Path]]:
    """Write what the teacher says of each picture, once; return the cached files, and the pictures that cannot be used.

    A file holds the resized picture and the teacher's maps without padding, H x W x C in fp16: about 6 MB for a photo. It is
    named after the picture's content, the teacher and the size: what has changed is computed anew. Pictures that cannot be
    read, or whose short side would be under 16 pixels, are skipped.

    Raises:
        InvalidInputError: none of the pictures can be used, or there is none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cached: list[Path] = []
    skipped: list[Path] = []
    for picture in tqdm(pictures, desc="teacher", unit="picture", disable=None):
        try:
            path = folder / f"{picture_key(picture, teacher.key, image_size)}.safetensors"
            if not path.exists():
                maps = _teach(read_image(picture), teacher, image_size)
                part = path.with_suffix(f".{os.getpid()}.part")
                save_file(maps, part)
                os.replace(part, path)
        except (ImageReadError, InvalidInputError, PermissionError):
            skipped.append(picture)
            continue
        cached.append(path)
    if not cached:
        raise InvalidInputError(f"none of the {len(pictures)} pictures can be used: give a folder of JPEG or PNG files.")
    return sorted(set(cached)), skipped


def _teach(image: np.ndarray[Any, Any], teacher: Teacher, image_size: int) -> Maps:
    """Return the picture with the long side at `image_size`, and the teacher's maps of it, all H x W x C."""
    scale = image_size / max(image.shape[:2])
    height, width = (max(1, int(side * scale + 0.5)) for side in image.shape[:2])
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized.copy())
    rows, columns = height // STRIDE, width // STRIDE
    if not rows or not columns:
        raise InvalidInputError(f"a picture of {width} x {height} pixels, resized, is too narrow: cut it into parts.")
    maps = teacher(pad_and_normalize(pixels, image_size))
    out = {name: m[0].permute(1, 2, 0)[:rows, :columns].half().contiguous() for name, m in maps.items()}
    out["image"] = pixels[: rows * STRIDE, : columns * STRIDE].contiguous()
    return out
