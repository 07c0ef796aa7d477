"""What a `Predictor` runs: four parts in one runtime, and what they were made for."""

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor

from ..devices import find_device, free_memory
from ..encoders.groupmixformer import GroupMixFormer
from ..errors import InvalidInputError
from .backends import Backend, TorchBackend
from .fused_decoder import FusedDecoder, ImageTokens
from .fused_encoder import fuse_encoder

__all__ = ["InferenceModel", "in_place", "model_hash", "torch_model"]

# Prompts that are decoded at a time on a CPU, where more are no faster, and at most on a GPU: a plan's limit.
CPU_PROMPTS, GPU_PROMPTS = 8, 64
# What the decoder holds at once of a prompt, for each of the image's tokens.
DECODER_BYTES = 12_000

# Logits where a decoder that sees a window has looked at nothing.
OUTSIDE = -10.0


@dataclass(frozen=True, eq=False)
class InferenceModel:
    """A model in one runtime. R and C are rows and columns of the grid of features: the input's sides / `embed_stride`.

    Attributes:
        encoder: From images, B x 3 x height x width, to features, B x 256 x R x C.
        masks: From low-resolution logits, 1 x 1 x 4R x 4C, to what is added to the features.
        image: From features, 1 x 256 x R x C, to the image's tokens.
        decoder: From those, points, P x N x 2, and labels, P x N, to logits, P x 4 x 4R x 4C, and predicted IoUs, P x 4.
        image_size: Length of the long side that images are resized to, in pixels.
        input_size: Height and width of the encoder's input, to which images are padded; None for as much as the image needs.
        embed_stride: Pixels of the input for one cell of the grid.
        mean: Of the pixels, RGB.
        std: Likewise.
        mask_threshold: Of the logits.
        dynamic_batch: Whether the encoder takes several images at once.
        model_hash: Hash of the weights, the input size and the stride, equal in every runtime.
        single_mask: As `decoder`, for one mask; it takes also whether prompts are ambiguous, P, and the rows and columns of the
            grid to decode, and returns P x 4 rows x 4 columns, and P. None if the model has no such part: `decoder` will do.
        crop: From rows and columns of the grid to `masks`, `image` and `decoder` that see those alone, and leave all else out
            of the masks; None if the runtime has none.
        crop_step: What the numbers of those rows and columns are multiples of, or the grid's own.
    """

    encoder: Backend
    masks: Backend
    image: Backend
    decoder: Backend
    image_size: int
    input_size: tuple[int, int] | None
    embed_stride: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    mask_threshold: float
    dynamic_batch: bool
    model_hash: str
    single_mask: Backend | None = None
    crop: Callable[[slice, slice], tuple[Backend, Backend, Backend]] | None = None
    crop_step: int = 1

    @property
    def device(self) -> torch.device:
        """Where features, an image's tokens and logits stay."""
        return self.decoder.device

    def prompts_at_once(self) -> int:
        """Return how many prompts are decoded at a time, a power of two: on a GPU as its free memory allows."""
        free = free_memory(self.device)
        if free is None:
            return CPU_PROMPTS
        grid = self.image_size // self.embed_stride
        fitting = free // 2 // (DECODER_BYTES * grid**2)
        return 1 << max(1, min(fitting, GPU_PROMPTS)).bit_length() - 1


def torch_model(
    sam: Sam, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32, *, pad: bool = True
) -> InferenceModel:
    """Return a Sam as it is run in PyTorch, with the encoder fused if it is a GroupMixFormer; the Sam is not changed.

    Args:
        sam: A model built by `build_sam_groupmix`, in fp32.
        device: Where it runs; by default where the Sam is.
        dtype: Of the encoder.
        pad: Whether images are padded to a square, as segment-anything does.

    Raises:
        InvalidInputError: the Sam is not in fp32, or its encoder takes a square alone.
        RuntimeUnavailableError: there is no such device here.
    """
    parameter = next(sam.parameters())
    if parameter.dtype != torch.float32:
        raise InvalidInputError(f"the Sam is in {parameter.dtype}: give one in fp32, and dtype={parameter.dtype} to run it so.")
    where = sam.device if device is None else find_device(device)
    encoder = sam.image_encoder
    size = int(encoder.img_size)
    if not pad and not isinstance(encoder, GroupMixFormer):
        raise InvalidInputError(f"a {type(encoder).__name__} takes a square alone: leave out pad, or give a GroupMixFormer.")
    fused = fuse_encoder(encoder) if isinstance(encoder, GroupMixFormer) else deepcopy(encoder).eval()
    decoder = FusedDecoder(sam).to(where)
    mean, std = (value.flatten().float().cpu().numpy() for value in (sam.pixel_mean, sam.pixel_std))
    return InferenceModel(
        encoder=TorchBackend(fused.to(where, dtype), where, dtype),
        masks=TorchBackend(decoder.embed_masks, where),
        image=TorchBackend(decoder.image, where),
        decoder=TorchBackend(partial(_decode, decoder), where),
        image_size=size,
        input_size=(size, size) if pad else None,
        embed_stride=int(encoder.embed_stride),
        mean=mean,
        std=std,
        mask_threshold=float(sam.mask_threshold),
        dynamic_batch=True,
        model_hash=model_hash(sam),
        single_mask=TorchBackend(partial(_decode_single_mask, decoder), where),
        crop=partial(_crop, decoder, where),
    )


def _decode(decoder: FusedDecoder, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    *image, points, labels = inputs
    return decoder(ImageTokens(*image), points, labels)


def _decode_single_mask(decoder: FusedDecoder, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    return decoder.single_mask(ImageTokens(*inputs[:4]), *inputs[4:])


def _crop(decoder: FusedDecoder, device: torch.device, rows: slice, columns: slice) -> tuple[Backend, Backend, Backend]:
    part = decoder.crop(rows, columns)

    def masks(low: Tensor) -> tuple[Tensor]:
        return (part.embed_masks(low),)

    return in_place(masks, part.image, partial(_decode, part), device, decoder.grid, rows, columns)


def in_place(
    masks: Callable[..., Sequence[Tensor]],
    image: Callable[..., Sequence[Tensor]],
    decoder: Callable[..., Sequence[Tensor]],
    device: torch.device,
    grid: tuple[int, int],
    rows: slice,
    columns: slice,
) -> tuple[Backend, Backend, Backend]:
    """Return `masks`, `image` and `decoder` that take and give what those of the whole grid do, from those of a part of it."""
    four = slice(4 * rows.start, 4 * rows.stop), slice(4 * columns.start, 4 * columns.stop)

    def embed(low: Tensor) -> Tensor:
        (dense,) = masks(low[:, :, four[0], four[1]])
        whole = dense.new_zeros(*dense.shape[:2], *(side // 4 for side in low.shape[2:]))
        whole[:, :, rows, columns] = dense
        return whole

    def cut(features: Tensor) -> Sequence[Tensor]:
        return image(features[:, :, rows, columns])

    def fill(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits, scores = decoder(*inputs)
        whole = logits.new_full((*logits.shape[:2], *(4 * side for side in grid)), OUTSIDE)
        whole[..., four[0], four[1]] = logits
        return whole, scores

    return TorchBackend(embed, device), TorchBackend(cut, device), TorchBackend(fill, device)


def model_hash(sam: Sam) -> str:
    """Return the sha256 of a Sam's weights, input size and stride: what its embeddings depend on."""
    digest = hashlib.sha256(f"{sam.image_encoder.img_size}/{sam.image_encoder.embed_stride}".encode())
    for name, value in sorted(sam.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
