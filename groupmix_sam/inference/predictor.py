"""SamPredictor for the line: the same calls and masks, from a Sam in PyTorch or from a folder that was exported."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from ..devices import use_threads
from ..errors import InvalidInputError, NoImageError, WeightsError, WeightsNotFoundError
from ..files import checksum, write_beside
from ..images import as_rgb
from ..preprocess import check_aspect, input_size, pad_and_normalize, resize, resized_size
from ..prompts import decoder_prompts, is_ambiguous
from ..sam import build_sam_groupmix
from ..weights import is_exported
from .exported_folder import folder_model
from .mask_resize import neighbours, resize_blocks, resize_mask, resize_on_device
from .model import InferenceModel, torch_model

__all__ = ["Predictor"]

# Of the files of embeddings.
FORMAT_VERSION = "1"


class Predictor:
    """Masks from prompts, with SamPredictor's methods and semantics, in any runtime.

    It also takes several images (`set_image_batch`) and many prompts at once (`predict_prompts`), and keeps embeddings
    (`save_embedding`, `load_embedding`). Logits are resized to the image once, where segment-anything resizes them twice: masks
    differ slightly along outlines. NumPy arrays go in and come out. In shapes S is `image_size` and G is
    S / `embed_stride`, the side of the grid of features: 64 by default. Where padding is not encoded, shapes are the same.

    Args:
        model: A Sam that `build_sam_groupmix` built, which is not changed; or what `torch_model` and `folder_model` return.
        device: Of a Sam: "auto", "cpu", "cuda" or "mps"; by default where the Sam is.
        dtype: Of a Sam's encoder: fp32, bf16 or fp16.
        pad: Of a Sam: whether images are padded to a square, as segment-anything does. Without it a GroupMixFormer encodes and
            decodes only the image: 56 % of the square for a frame of 16:9. Masks differ slightly (docs/speed.md).

    Raises:
        InvalidInputError: no Sam, or one that is not in fp32, or one whose encoder takes a square alone.
        RuntimeUnavailableError: there is no such device here.
    """

    def __init__(
        self,
        model: Sam | InferenceModel,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        pad: bool = True,
    ) -> None:
        if isinstance(model, Sam):
            model = torch_model(model, device, dtype, pad=pad)
        elif not isinstance(model, InferenceModel):
            raise InvalidInputError(f"the model is a {type(model).__name__}: give a Sam, or use Predictor.from_pretrained.")
        self.model = model
        self._origin: tuple[Any, ...] | None = None
        self.reset_image()

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | PathLike[str] = "default",
        *,
        encoder: str | None = None,
        image_size: int | None = None,
        device: str | None = "auto",
        dtype: torch.dtype = torch.float32,
        pad: bool = True,
        threads: int | None = None,
    ) -> "Predictor":
        """Return a predictor by the name of its model: weights in PyTorch, or an exported folder in its runtime.

        Args:
            checkpoint: What `build_sam_groupmix` takes, or a folder that `groupmix-sam export` wrote.
            encoder: As for `build_sam_groupmix`; an exported folder has its own.
            image_size: Likewise.
            device: Of weights: "auto" (CUDA or MPS where there is one), "cpu", "cuda" or "mps". Of an exported folder: see
                `folder_model`.
            dtype: Of weights' encoder: fp32, bf16 or fp16.
            pad: Of weights: as for `Predictor`; an exported folder was made for a square or for a frame size.
            threads: On a CPU, see `find_threads`. PyTorch has one number for the process, which this sets.

        Raises:
            GroupMixSamError: one of those that `build_sam_groupmix`, `torch_model` and `folder_model` raise.
        """
        if is_exported(checkpoint):
            if encoder is not None or image_size is not None or dtype != torch.float32 or not pad:
                raise InvalidInputError(
                    f"{checkpoint} was exported: leave out encoder, image_size, dtype and pad, it has its own."
                )
            predictor = cls(folder_model(Path(checkpoint), device, threads))
            predictor._origin = str(checkpoint), device, threads
            return predictor
        use_threads(threads)
        sam = build_sam_groupmix(checkpoint, encoder=encoder, image_size=image_size)
        return cls(sam, device=device, dtype=dtype, pad=pad)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A runtime's session cannot be pickled: a copy, and a worker process, opens the folder again. Its images are not kept.
        if self._origin is None:
            return super().__reduce_ex__(protocol)
        checkpoint, device, threads = self._origin
        return partial(Predictor.from_pretrained, device=device, threads=threads), (checkpoint,)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that images are resized and padded to."""
        return self.model.image_size

    @property
    def mask_threshold(self) -> float:
        return self.model.mask_threshold

    @property
    def model_hash(self) -> str:
        """Hash of the weights, the input size and the stride, equal in every runtime."""
        return self.model.model_hash

    def reset_image(self) -> None:
        """Forget the images."""
        self._features: list[Tensor] = []
        self._tokens: dict[int, list[Tensor]] = {}
        self._sizes: list[tuple[int, int]] = []

    @property
    def is_image_set(self) -> bool:
        return bool(self._features)

    def set_image(self, image: NDArray[Any], image_format: str = "RGB") -> None:
        """Compute an image's embedding, for `predict`.

        Args:
            image: H x W x 3, uint8; also H x W, H x W x 4 or uint16.
            image_format: "RGB" or "BGR".
        """
        self.set_image_batch([image], image_format)

    def set_image_batch(self, images: Sequence[NDArray[Any]], image_format: str = "RGB", batch_size: int = 4) -> None:
        """Compute the embeddings of several images, of any sizes; `predict(..., index=i)` then is about the i-th.

        Args:
            images: What `set_image` takes.
            image_format: "RGB" or "BGR".
            batch_size: How many go through the encoder at once; exports without `--dynamic-batch` take one.
        """
        if image_format not in ("RGB", "BGR"):
            raise InvalidInputError(f"image_format is {image_format!r}: use 'RGB' or 'BGR'.")
        if batch_size < 1:
            raise InvalidInputError(f"batch_size is {batch_size}: give 1 or more.")
        if isinstance(images, np.ndarray) and images.ndim < 4:
            raise InvalidInputError(f"images is one array of shape {images.shape}: give a list of images.")
        if not len(images):
            raise InvalidInputError("there is no image: give one or more.")
        arrays = [as_rgb(image) for image in images]
        for array in arrays:
            check_aspect(array.shape[:2], self.image_size)
            self._input_size(array.shape[:2])
        self.reset_image()
        step = batch_size if self.model.dynamic_batch else 1
        embeddings: list[Tensor] = []
        for _, group in groupby(arrays, key=lambda array: self._input_size(array.shape[:2])):
            alike = list(group)
            for start in range(0, len(alike), step):
                inputs = [self.preprocess(array, image_format) for array in alike[start : start + step]]
                (features,) = self.model.encoder(_tensor(np.stack(inputs)))
                embeddings += self._fill(features).split(1)
        self._features = embeddings
        self._sizes = [(array.shape[0], array.shape[1]) for array in arrays]

    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        index: int = 0,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Return masks, C x H x W of bool, their predicted IoUs, C, and low-resolution logits, C x 4G x 4G; C is 3 or 1.

        Args:
            point_coords: N x 2, x before y, in the image's pixels.
            point_labels: N, 1 for foreground and 0 for background.
            box: Left, top, right, bottom in pixels.
            mask_input: Logits of an earlier prediction, 1 x 4G x 4G; with points or a box, or alone.
            multimask_output: Return three masks, for what is ambiguous, and not one.
            return_logits: Return the resized logits and not bools.
            index: Which of the images.

        Raises:
            NoImageError: there is no image yet.
            InvalidInputError: a prompt that cannot be used, such as a point outside the image or a reversed box, or none.
        """
        masks, scores, logits = self.predict_prompts(
            None if point_coords is None else np.asarray(point_coords)[None],
            None if point_labels is None else np.asarray(point_labels)[None],
            None if box is None else np.asarray(box).reshape(1, -1),
            None if mask_input is None else np.asarray(mask_input)[None],
            multimask_output,
            return_logits,
            index=index,
        )
        return masks[0], scores[0], logits[0]

    def predict_prompts(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        index: int = 0,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Do for P prompts on one image what `predict` does for one: P x C x H x W, P x C and P x C x 4G x 4G.

        Args:
            point_coords: P x N x 2, x before y, in the image's pixels.
            point_labels: P x N, 1 for foreground, 0 for background, -1 for none.
            boxes: P x 4: left, top, right, bottom in pixels.
            mask_input: P x 1 x 4G x 4G.
            multimask_output: Three masks for each prompt, or one.
            return_logits: Return the resized logits and not bools.
            index: Which of the images.
        """
        masks, scores, logits = self.predict_tensors(
            point_coords, point_labels, boxes, mask_input, multimask_output, return_logits, index=index
        )
        return masks.numpy(force=True), scores.numpy(force=True), logits.numpy(force=True)

    def predict_tensors(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        index: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do what `predict_prompts` does, and leave the tensors on the model's device."""
        logits, scores = self._predict(index, point_coords, point_labels, boxes, mask_input, multimask_output)
        return self._to_image(logits, index, return_logits), scores, logits

    def predict_logits(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        *,
        index: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the scores and the low-resolution logits of `predict_prompts`, without masks in the image's size."""
        logits, scores = self._predict(index, point_coords, point_labels, boxes, mask_input, multimask_output)
        return scores.numpy(force=True), logits.numpy(force=True)

    def predict_single_mask(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
        *,
        index: int = 0,
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return one mask for each of P prompts, P x H x W, and its predicted IoU, P: the mask that `segment` takes.

        For one point it is the best of three by predicted IoU, and else the single one. Arguments are those of
        `predict_prompts`.
        """
        points, labels = self._prompts(index, point_coords, point_labels, boxes)
        three = is_ambiguous((labels >= 0).sum(axis=1), boxes is not None)
        if self.model.single_mask is None:
            logits, scores = self._decode(index, None, points, labels)
            chosen = torch.where(torch.from_numpy(three).to(scores.device), 1 + scores[:, 1:].argmax(dim=1), 0)[:, None]
            logits = logits.take_along_dim(chosen[..., None, None], dim=1)[:, 0]
            scores = scores.take_along_dim(chosen, dim=1)[:, 0]
        else:
            cells = [torch.arange(count, dtype=torch.float32) for count in self._cells(index)]
            single = self.model.single_mask
            prompts = _tensor(points), _tensor(labels), _tensor(three)
            chunks = zip(*(value.split(self._parts(points)) for value in prompts), strict=True)
            logits, scores = _join([single(*self._image_tokens(index), *chunk, *cells) for chunk in chunks])
            logits = self._whole(logits[:, None])[:, 0]
        return self._to_image(logits, index).numpy(force=True), scores.numpy(force=True)

    def get_image_embedding(self, index: int = 0) -> NDArray[np.float32]:
        """Return an image's embedding, 1 x 256 x G x G."""
        if not self._features:
            raise NoImageError("an image must be set with set_image() to have an embedding.")
        self._check_index(index)
        return self._features[index].numpy(force=True)

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features of what `preprocess` returned, B x 256 x R x C; in PyTorch also of windows of it.

        Args:
            pixels: B x 3 x height x width, multiples of 16, for R x C cells of the grid.
        """
        (features,) = self.model.encoder(_tensor(pixels))
        return features.numpy(force=True)

    def set_embedding(self, features: NDArray[np.float32], size: tuple[int, int]) -> None:
        """Set an image by its embedding, 1 x 256 x G x G or what `encode` returned, and its height and width in pixels."""
        self.reset_image()
        self._features = [self._fill(_tensor(features).to(self.model.device))]
        self._sizes = [size]

    def save_embedding(self, path: str | PathLike[str]) -> Path:
        """Write the images' embeddings as safetensors, beside and then renamed; return the path.

        Raises:
            SaveError: it cannot be written.
        """
        if not self._features:
            raise NoImageError("an image must be set with set_image() to have an embedding.")
        path = Path(path)
        features = torch.cat(self._features).cpu().contiguous()
        tensors = {"features": features, "sizes": torch.tensor(self._sizes)}
        metadata = {"format_version": FORMAT_VERSION, "model_hash": self.model_hash, "crc32": checksum(tensors)}
        write_beside(path, lambda part: save_file(tensors, part, metadata))
        return path

    def load_embedding(self, path: str | PathLike[str]) -> None:
        """Set the images whose embeddings `save_embedding` wrote, with these weights in whichever runtime.

        Raises:
            WeightsNotFoundError: there is no such file.
            WeightsError: it is damaged, or was computed by other weights or at another size.
        """
        path = Path(path)
        if not path.is_file():
            raise WeightsNotFoundError(f"there is no embedding {path}: check the path.")
        try:
            with safe_open(path, framework="pt") as f:
                metadata = f.metadata() or {}
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except Exception as e:  # a damaged header makes safetensors raise more than its own error
            raise WeightsError(f"{path} is not a whole safetensors file ({e}): save the embedding again.") from e
        if metadata.get("model_hash") != self.model_hash or tensors.keys() != {"features", "sizes"}:
            raise WeightsError(f"{path} was not computed by this model at this size: set_image() and save it again.")
        if metadata.get("crc32") != checksum(tensors):
            raise WeightsError(f"{path} is damaged: save the embedding again.")
        self.reset_image()
        self._features = list(tensors["features"].to(self.model.device).split(1))
        self._sizes = [(int(height), int(width)) for height, width in tensors["sizes"].tolist()]

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self._features):
            raise InvalidInputError(f"index is {index}: there are {len(self._features)} images, counted from 0.")

    def preprocess(self, image: NDArray[np.uint8], image_format: str = "RGB") -> NDArray[np.float32]:
        """Return the encoder's input, 3 x height x width: resized, normalised, padded at the bottom and the right."""
        if image_format == "BGR":
            image = np.ascontiguousarray(image[:, :, ::-1])
        size = self._input_size(image.shape[:2])
        return pad_and_normalize(resize(image, self.image_size), size, self.model.mean, self.model.std)

    def _input_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Return the height and width of the encoder's input for an image of a height and width."""
        needed = input_size((size[0], size[1]), self.image_size)
        rows, columns = self.model.input_size or needed
        if needed[0] > rows or needed[1] > columns:
            raise InvalidInputError(
                f"the image of {size[1]} x {size[0]} pixels does not fit the model, which was exported for frames of the shape "
                f"of {columns} x {rows}: export it for this frame size, or without one for images of any shape."
            )
        return rows, columns

    @property
    def _side(self) -> int:
        """G."""
        return self.image_size // self.model.embed_stride

    def _fill(self, features: Tensor) -> Tensor:
        """Bring B x 256 x R x C features to G x G, with zeros where there is only padding."""
        rows, columns = features.shape[2:]
        if (rows, columns) == (self._side, self._side):
            return features
        return F.pad(features, (0, self._side - columns, 0, self._side - rows))

    def _grid(self, index: int) -> tuple[int, int]:
        """Return R and C of an image."""
        height, width = self._input_size(self._sizes[index])
        return height // self.model.embed_stride, width // self.model.embed_stride

    def _cells(self, index: int) -> list[int]:
        """Return of how many rows and columns of the grid an image's masks are made; the others are of padding alone."""
        size = self._sizes[index]
        sides = zip(size, self._extents(size), self._grid(index), strict=True)
        return [min(encoded, _upscaled(side, extent, 4 * self._side)) for side, extent, encoded in sides]

    def _extents(self, size: tuple[int, int]) -> list[float]:
        """Return the rows and columns of logits that an image fills."""
        return [4 * side / self.model.embed_stride for side in resized_size(size, self.image_size)]

    def _image_tokens(self, index: int) -> list[Tensor]:
        """Return what all prompts on an image share; it is kept for the image that was asked about last."""
        if index not in self._tokens:
            rows, columns = self._grid(index)
            tokens = self.model.image(self._features[index][:, :, :rows, :columns].contiguous())
            self._tokens = {index: tokens}  # 12 MB each
        return self._tokens[index]

    def _parts(self, points: NDArray[np.float32]) -> list[int]:
        """Return how many prompts are decoded at a time."""
        return _powers_of_two(len(points), self.model.prompts_at_once())

    def _prompts(
        self,
        index: int,
        point_coords: NDArray[Any] | None,
        point_labels: NDArray[Any] | None,
        boxes: NDArray[Any] | None,
        mask_input: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return points and labels as the decoder takes them."""
        if not self._features:
            raise NoImageError("an image must be set with set_image() before masks are predicted.")
        self._check_index(index)
        size = self._sizes[index]
        if mask_input is not None and np.size(mask_input) and point_coords is point_labels is boxes is None:
            points = np.zeros((*np.shape(mask_input)[:1], 0, 2), dtype=np.float32)  # a mask alone says what is meant
            return points, points[..., 0]
        return decoder_prompts(point_coords, point_labels, boxes, size, resized_size(size, self.image_size))

    def _predict(
        self,
        index: int,
        point_coords: NDArray[Any] | None,
        point_labels: NDArray[Any] | None,
        boxes: NDArray[Any] | None,
        mask_input: NDArray[Any] | None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the logits and scores of three masks for each prompt, or of one."""
        points, labels = self._prompts(index, point_coords, point_labels, boxes, mask_input)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        logits, scores = self._decode(index, mask_input, points, labels)
        return logits[:, chosen], scores[:, chosen]

    def _decode(
        self, index: int, mask_input: NDArray[Any] | None, points: NDArray[np.float32], labels: NDArray[np.float32]
    ) -> list[Tensor]:
        """Return all four masks' logits and scores for each prompt."""
        decoder, image = self.model.decoder, self.model.image
        prompts = _tensor(points), _tensor(labels)
        if mask_input is None:
            chunks = zip(*(value.split(self._parts(points)) for value in prompts), strict=True)
            logits, scores = _join([decoder(*self._image_tokens(index), *chunk) for chunk in chunks])
            return [self._whole(logits), scores]
        masks = _tensor(mask_input)
        shape = (len(points), 1, 4 * self._side, 4 * self._side)
        if masks.shape != shape:
            raise InvalidInputError(
                f"the masks have shape {tuple(masks.shape)}: give {shape}, one for each prompt, which are the logits of an "
                "earlier prediction."
            )
        rows, columns = self._grid(index)
        features = self._features[index][:, :, :rows, :columns].contiguous()
        masks = masks[:, :, : 4 * rows, : 4 * columns].contiguous()
        outputs = []
        for mask, *prompt in zip(*(value.split(1) for value in (masks, *prompts)), strict=True):
            (dense,) = self.model.masks(mask)
            outputs.append(decoder(*image(features + dense), *prompt))  # each mask makes another image of it
        logits, scores = _join(outputs)
        return [self._whole(logits), scores]

    def _whole(self, logits: Tensor) -> Tensor:
        """Bring P x M x 4R x 4C logits to 4G x 4G, continuing those at the edge, so that nothing is cut off in resizing."""
        below, beside = (4 * self._side - side for side in logits.shape[2:])
        return F.pad(logits, (0, beside, 0, below), mode="replicate") if below or beside else logits

    def _to_image(self, logits: Tensor, index: int, return_logits: bool = False) -> Tensor:
        """Resize P x ... x 4G x 4G logits to the image, P x ... x H x W of bool or as they are, leaving out the padding."""
        size = self._sizes[index]
        extents = self._extents(size)
        dtype = torch.float32 if return_logits else torch.bool
        out = torch.empty((*logits.shape[:-2], *size), dtype=dtype, device=logits.device)
        flat = logits.flatten(0, -3)
        if out.device.type != "cpu":
            for low, whole in zip(flat, out.view(-1, *size), strict=True):
                resized = resize_on_device(low, size, extents)
                whole.copy_(resized if return_logits else resized > self.mask_threshold)
            return out
        rows, columns = map(neighbours, size, flat.shape[1:], extents)
        for low, whole in zip(flat.numpy(), out.view(-1, *size).numpy(), strict=True):
            if not return_logits:
                resize_mask(low, rows, columns, self.mask_threshold, whole)
                continue
            for block, part in resize_blocks(low, rows, columns):
                whole[block] = part
        return out


def _upscaled(side: int, extent: float, source: int) -> int:
    """Return how many cells, of four logits each, have logits by which `extent` of `source` are resized to `side`."""
    return -(-(int(neighbours(side, source, extent).first[-1]) + 2) // 4)


def _powers_of_two(total: int, most: int) -> list[int]:
    """Split a number of prompts, as a runtime keeps memory for each number that it has met."""
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(min(most, 1 << (total - sum(sizes)).bit_length() - 1))
    return sizes or [0]


def _join(outputs: list[list[Tensor]]) -> list[Tensor]:
    return outputs[0] if len(outputs) == 1 else [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return an array in fp32 as a tensor, which shares its memory where it can."""
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
