"""Models to evaluate, by the name of their weights: ours, MobileSAM, and SAM's ViT-B, ViT-L and ViT-H."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from ..devices import find_device, use_threads
from ..encoders.config import IMAGE_SIZE
from ..errors import InvalidInputError, WeightsError
from ..files import sha256
from ..inference import MaskPredictor, Predictor
from ..sam import build_sam_groupmix
from ..weights import SAM_VITS, is_exported, open_weights, origin_of

__all__ = ["Model", "NanoSamPredictor", "load_model"]


@dataclass(frozen=True)
class Model:
    """A predictor, and what a result records of it.

    Attributes:
        predictor: `SamPredictor`, `Predictor`, or your own with their `set_image` and `predict`.
        name: Its name in tables.
        sha256: Of its weights' file, or of an exported folder's `config.json`: by it a result is known again. Give any string
            that changes when your own model does; None if there is none, and every evaluation starts afresh.
        image_size: Side in pixels that it resizes images to.
    """

    predictor: MaskPredictor
    name: str
    sha256: str | None = None
    image_size: int = IMAGE_SIZE

    @property
    def label(self) -> str:
        return f"{self.name}-{self.sha256[:8]}" if self.sha256 else self.name

    def record(self) -> dict[str, Any]:
        """Return what goes into a result, as JSON has it."""
        return {"name": self.name, "sha256": self.sha256, "image_size": self.image_size}


def load_model(
    checkpoint: str | PathLike[str] = "default",
    *,
    encoder: str | None = None,
    image_size: int | None = None,
    resize: str = "sam",
    device: str = "auto",
    threads: int | None = None,
) -> Model:
    """Load a model for evaluation.

    Args:
        checkpoint: "default", a file, a folder or "hf-hub:org/repo[@revision]"; ours, MobileSAM's or SAM's own; or a folder
            that `groupmix-sam export` wrote, whose encoder and size are its own.
        encoder: A name out of `ENCODERS`, "vit_b", "vit_l" or "vit_h"; by default what the weights say.
        image_size: Side in pixels that images are resized to; by default what the weights say; 1024 alone for SAM's own.
        resize: "sam" or "nanosam", see `Protocol`.
        device: As for `Predictor.from_pretrained`.
        threads: Likewise.

    Raises:
        RuntimeUnavailableError: there is no such device here.
        WeightsError: the weights were not found, are damaged, or do not say which encoder they are for.
    """
    if is_exported(checkpoint):
        if resize != "sam":
            raise InvalidInputError(f"{checkpoint} is an exported model, which resizes by itself: use resize 'sam'.")
        exported = Predictor.from_pretrained(checkpoint, encoder=encoder, image_size=image_size, device=device, threads=threads)
        # Not the weights' hash, which all exports of theirs share, but of what holds the hashes of the folder's files.
        return Model(exported, Path(checkpoint).name, sha256(Path(checkpoint) / "config.json"), exported.image_size)
    weights = open_weights(checkpoint, encoder)
    name = encoder or origin_of(weights).encoder
    if name in SAM_VITS.values():
        if image_size not in (None, IMAGE_SIZE):
            raise InvalidInputError(f"the image size is {image_size}: {name} takes {IMAGE_SIZE} alone.")
        sam = segment_anything.sam_model_registry[name]()
        try:
            sam.load_state_dict(weights.tensors)
        except RuntimeError as e:
            raise WeightsError(f"{weights.path} does not fit {name!r}: pass the encoder= that it was made for.") from e
    else:
        sam = build_sam_groupmix(weights, encoder=encoder, image_size=image_size)
    use_threads(threads)
    sam = sam.eval().to(find_device(device))
    predictor = NanoSamPredictor(sam) if resize == "nanosam" else SamPredictor(sam)
    return Model(predictor, str(name), sha256(weights.path), int(sam.image_encoder.img_size))


class NanoSamPredictor(SamPredictor):  # type: ignore[misc]  # segment-anything has no types
    """A SamPredictor that resizes images and masks as NanoSAM's evaluation does."""

    def __init__(self, sam_model: Sam) -> None:
        super().__init__(sam_model)
        self.transform = _NanoSamTransform(sam_model.image_encoder.img_size)

    @torch.no_grad()
    def predict_torch(self, *args: Any, return_logits: bool = False, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As SamPredictor's, but the masks are enlarged from the logits to the image in one step."""
        _, predicted, low_res = super().predict_torch(*args, return_logits=True, **kwargs)
        height, width = self.original_size
        rows, columns = (int(low_res.shape[-1] * side / max(height, width)) for side in (height, width))
        masks = F.interpolate(low_res[:, :, :rows, :columns], (height, width), mode="bilinear")
        return (masks if return_logits else masks > self.model.mask_threshold), predicted, low_res


class _NanoSamTransform:
    """In the place of segment-anything's ResizeLongestSide."""

    def __init__(self, side: int) -> None:
        self.side = side

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        aspect = width / height  # divided by and cut off just as there, as 1024 / (4 / 3) might round another way
        size = (self.side, int(self.side / aspect)) if aspect >= 1 else (int(self.side * aspect), self.side)
        return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

    def apply_coords(self, coords: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        return coords * (self.side / max(size))

    def apply_boxes(self, boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        return self.apply_coords(boxes, size)
