"""Images to distil on: resized as at inference, cut into crops, and handed out in an order that can be repeated.

What a run's n-th sample is depends on the seed and on n alone, so that a run goes on where it was stopped, and several
processes share out what one would have seen.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from ..encoders.config import IMAGE_SIZE, STRIDE
from ..errors import ImageReadError, InvalidInputError
from ..images import ImageFile
from ..preprocess import check_aspect, pad_and_normalize, resize
from .recipe import Recipe

__all__ = ["CachedImage", "Grid", "Maps", "Samples", "as_input", "resized", "sample_loader", "whole_images"]

Maps = dict[str, Tensor]
GRACE_SECONDS = 120.0  # more than a step takes


@dataclass(frozen=True)
class Grid:
    """The student's square input, and the cells of it that a feature each stands for.

    A teacher's features have a stride of 16 pixels. So that they lie on the same grid, it sees the image at `teacher_size`.

    Args:
        image_size: Side in pixels that images are resized and padded to.
        stride: Side in pixels of a cell, the student's `embed_stride`.
    """

    image_size: int = IMAGE_SIZE
    stride: int = STRIDE

    @classmethod
    def of(cls, encoder: nn.Module) -> "Grid":
        """Return the grid of a SAM encoder of this package."""
        return cls(int(cast(Any, encoder).img_size), int(cast(Any, encoder).embed_stride))

    @property
    def teacher_size(self) -> int:
        """Return the side in pixels of the teacher's input."""
        return self.image_size * STRIDE // self.stride


@dataclass(frozen=True)
class CachedImage:
    """Two files of the cache: the image as the student sees it, and the teacher's maps of it.

    Args:
        image: File of the resized image, H x W x 3, uint8.
        maps: File of the teacher's maps without padding, h x w x C, fp16.
        stride: Side in pixels of the cell of the image that a feature stands for.
    """

    image: Path
    maps: Path
    stride: int = STRIDE

    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of the cells that both files cover: sides are rounded, so the maps may have one more."""
        with safe_open(self.image, framework="pt") as image, safe_open(self.maps, framework="pt") as maps:
            height, width, _ = image.get_slice("image").get_shape()
            rows, columns, _ = maps.get_slice("features").get_shape()
        return min(rows, height // self.stride), min(columns, width // self.stride)

    def read(self) -> Maps:
        """Return the image, with what the grid does not cover at its bottom and right, and the maps."""
        rows, columns = self.grid()
        with safe_open(self.image, framework="pt") as f:
            pixels = f.get_tensor("image")
        return self._read_maps(0, 0, rows, columns) | {"image": pixels}

    def read_part(self, row: int, column: int, rows: int, columns: int) -> Maps:
        """Return a part of the image and of the maps; positions and sizes in the grid."""
        top, left, height, width = (n * self.stride for n in (row, column, rows, columns))
        with safe_open(self.image, framework="pt") as f:
            pixels = f.get_slice("image")[top : top + height, left : left + width]
        return self._read_maps(row, column, rows, columns) | {"image": pixels}

    def _read_maps(self, row: int, column: int, rows: int, columns: int) -> Maps:
        with safe_open(self.maps, framework="pt") as f:
            return {name: f.get_slice(name)[row : row + rows, column : column + columns] for name in f.keys()}  # noqa: SIM118


def resized(image: NDArray[np.uint8], image_size: int) -> Tensor:
    """Return an image, H x W x 3, with its long side at `image_size`.

    Raises:
        InvalidInputError: the short side would be under 16 pixels.
    """
    check_aspect((image.shape[0], image.shape[1]), image_size, smallest=STRIDE)
    return torch.from_numpy(resize(image, image_size).copy())


def as_input(pixels: Tensor, size: int) -> Tensor:
    """Turn uint8 RGB, H x W x 3, into an encoder's input, 1 x 3 x S x S, padded at the bottom and the right."""
    return torch.from_numpy(pad_and_normalize(pixels.numpy(), (size, size)))[None]


def whole_images(images: Sequence[CachedImage], grid: Grid) -> Iterator[Maps]:
    """Yield cached images as an encoder sees them at inference, one at a time; see `Samples` for the maps."""
    for image in images:
        yield _padded(image.read(), grid.image_size, grid.stride)


class Samples(Dataset[Maps]):
    """A phase's samples, endless in number; a sample is a batch of the crops of one image, or of the whole image.

    "input" is B x 3 x S x S. "valid", B x h x w, is false where the input is padding; h = w = S / stride. From the cache come
    the teacher's maps, B x h x w x C. Without it comes the "image" for the teacher, 1 x 3 x T x T, unless it is the input, and
    for crops the "cells", B x 2, row and column, where they begin in the grid, for `teach`. "skipped" are the images that
    could not be read and in whose place the next one stands, by their number.
    """

    def __init__(self, images: Sequence[ImageFile] | Sequence[CachedImage], recipe: Recipe, number: int, grid: Grid) -> None:
        self.images = images
        self.recipe = recipe
        self.number = number
        self.grid = grid
        self.phase = recipe.phases[number]
        self.crop = self.phase.crop
        self.crops = recipe.crops_per_image if self.crop else 1

    def __getitem__(self, i: int) -> Maps:
        rng = np.random.default_rng([self.recipe.seed, self.number, i])
        epoch, position = divmod(i, len(self.images))
        order = draw_order(len(self.images), self.recipe.seed, self.number, epoch)
        skipped: list[int] = []
        while len(skipped) < len(self.images):
            index = int(order[(position + len(skipped)) % len(order)])
            image = self.images[index]
            try:
                sample = self._cached(image, rng) if isinstance(image, CachedImage) else self._decoded(image, rng)
            except (ImageReadError, InvalidInputError):
                skipped.append(index)
            else:
                return sample | {"skipped": torch.tensor(skipped, dtype=torch.long)}
        raise InvalidInputError(f"none of the {len(self.images)} images can be used: give a folder of JPEG or PNG files.")

    def _cached(self, image: CachedImage, rng: np.random.Generator) -> Maps:
        size, stride = self.grid.image_size, self.grid.stride
        if not self.crop:
            return _padded(image.read(), size, stride)
        parts = [image.read_part(*window) for window in self._windows(*image.grid(), rng)]
        return collate([_padded(part, self.crop, stride) for part in parts])

    def _decoded(self, source: ImageFile, rng: np.random.Generator) -> Maps:
        image = source.decode()
        stride = self.grid.stride
        if self.recipe.augmentation == "resized_crop":
            size, seed = self.crop or self.grid.image_size, int(rng.integers(2**31))
            sample = _padded({"image": _resized_crop(image, size, seed)}, size, stride)
            if stride != STRIDE:
                size = size * STRIDE // stride
                sample["image"] = as_input(_resized_crop(image, size, seed), size)
            return sample
        pixels = resized(image, self.grid.image_size)
        whole = _padded({"image": pixels}, self.grid.image_size, stride)
        if stride != STRIDE:
            size = self.grid.teacher_size
            whole["image"] = as_input(resized(image, size), size)
        if not self.crop:
            return whole
        windows = self._windows(pixels.shape[0] // stride, pixels.shape[1] // stride, rng)
        parts = [_padded({"image": _cut(pixels, *window, stride)}, self.crop, stride) for window in windows]
        cells = torch.tensor([window[:2] for window in windows])
        return collate(parts) | {"image": whole.get("image", whole["input"]), "cells": cells}

    def _windows(self, rows: int, columns: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
        """Draw where crops begin in the grid, and their sizes there: smaller than asked for where the image is."""
        height, width = (min(self.crop // self.grid.stride, side) for side in (rows, columns))
        corners = rng.integers((rows - height + 1, columns - width + 1), size=(self.crops, 2)).tolist()
        return [(row, column, height, width) for row, column in corners]


@lru_cache(maxsize=2)
def draw_order(count: int, seed: int, number: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of so many images in an epoch of a phase or a stage, which its number tells from others."""
    return np.random.default_rng([seed, number, epoch, count]).permutation(count)


def _resized_crop(image: NDArray[np.uint8], size: int, seed: int) -> Tensor:
    """Return torchvision's RandomResizedCrop, the same part of the image at every size, S x S x 3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pixels: Tensor = v2.RandomResizedCrop((size, size))(torch.from_numpy(image).permute(2, 0, 1))
    return pixels.permute(1, 2, 0)


def _cut(pixels: Tensor, row: int, column: int, rows: int, columns: int, stride: int) -> Tensor:
    top, left = row * stride, column * stride
    return pixels[top : top + rows * stride, left : left + columns * stride]


def _padded(maps: Maps, size: int, stride: int) -> Maps:
    """Turn a part of an image and its maps into a sample of a square of `size` pixels."""
    maps = dict(maps)
    image = maps.pop("image")
    side = size // stride
    # The maps' where there are some, as their last row may be missing.
    rows, columns = next(iter(maps.values())).shape[:2] if maps else (n // stride for n in image.shape[:2])
    valid = torch.zeros(1, side, side, dtype=torch.bool)
    valid[:, :rows, :columns] = True
    padded = {name: F.pad(m, (0, 0, 0, side - columns, 0, side - rows))[None] for name, m in maps.items()}
    return {"input": as_input(image, size), "valid": valid, **padded}


def collate(samples: Sequence[Maps]) -> Maps:
    """Join samples into one batch."""
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


@dataclass(frozen=True)
class Share(Sampler[list[int]]):
    """The samples of one process's micro-batches, in a phase's steps from `first` to before `last`."""

    first: int
    last: int
    size: int
    accumulate: int
    process: int
    processes: int

    def __iter__(self) -> Iterator[list[int]]:
        for micro in range(self.first * self.accumulate, self.last * self.accumulate):
            begin = (micro * self.processes + self.process) * self.size
            yield list(range(begin, begin + self.size))

    def __len__(self) -> int:
        return (self.last - self.first) * self.accumulate


def sample_loader(samples: Samples, share: Share, workers: int) -> "DataLoader[Maps]":
    """Return a loader that reads ahead in processes of its own, or in this one without any."""
    return DataLoader(
        samples,
        batch_sampler=share,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=pass_first_stop,
    )


def pass_first_stop(_worker: int) -> None:
    """Let a reading process live on for a while after the first SIGTERM or Ctrl-C.

    Schedulers and terminals send them to all processes; the training one then stops after a step, and ends the others. One
    that it cannot end any more, because it failed, ends by itself.
    """

    def note(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        last = threading.Timer(GRACE_SECONDS, os._exit, (1,))
        last.daemon = True
        last.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
