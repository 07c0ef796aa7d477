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

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from ..encoders.config import STRIDE
from ..errors import ImageReadError, InvalidInputError
from ..images import ImageFile
from ..preprocess import check_aspect, pad_and_normalize, resize
from .recipe import Recipe

__all__ = ["CachedImage", "Maps", "Samples", "sample_loader", "whole_images"]

Maps = dict[str, Tensor]
GRACE_SECONDS = 120.0  # more than a step takes


@dataclass(frozen=True)
class CachedImage:
    """A file of the cache: the resized image, uint8, and the teacher's maps without padding, fp16, all H x W x C."""

    path: Path

    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of 16 x 16 pixels."""
        with safe_open(self.path, framework="pt") as f:
            rows, columns, _ = f.get_slice("features").get_shape()
        return rows, columns

    def read(self) -> Maps:
        """Return the image, with what the grid does not cover at its bottom and right, and the maps."""
        with safe_open(self.path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  it is no dict

    def read_part(self, row: int, column: int, rows: int, columns: int) -> Maps:
        """Return a part of the image and of the maps; positions and sizes in the grid."""
        with safe_open(self.path, framework="pt") as f:
            names = [name for name in f.keys() if name != "image"]  # noqa: SIM118  it is no dict
            crop: Maps = {name: f.get_slice(name)[row : row + rows, column : column + columns] for name in names}
            top, left = row * STRIDE, column * STRIDE
            crop["image"] = f.get_slice("image")[top : top + rows * STRIDE, left : left + columns * STRIDE]
        return crop


def whole_images(images: Sequence[CachedImage], image_size: int) -> Iterator[Maps]:
    """Yield cached images as an encoder sees them at inference, one at a time; see `Samples` for the maps."""
    for image in images:
        yield _padded(image.read(), image_size)


class Samples(Dataset[Maps]):
    """A phase's samples, endless in number; a sample is a batch of the crops of one image, or of the whole image.

    "input" is B x 3 x S x S. "valid", B x h x w, is false where the input is padding; h = w = S / 16. From the cache come the
    teacher's maps, B x h x w x C. Without it come, for crops, the whole "image", 1 x 3 x S x S, and the "cells", B x 2, row
    and column, where the crops begin in the grid, for `teach`. "skipped" are the images that
    could not be read and in whose place the next one stands, by their number.
    """

    def __init__(
        self, images: Sequence[ImageFile] | Sequence[CachedImage], recipe: Recipe, number: int, image_size: int
    ) -> None:
        self.images = images
        self.recipe = recipe
        self.number = number
        self.image_size = image_size
        self.phase = recipe.phases[number]
        self.crop = self.phase.crop
        self.crops = recipe.crops_per_image if self.crop else 1

    def __getitem__(self, i: int) -> Maps:
        rng = np.random.default_rng([self.recipe.seed, self.number, i])
        epoch, position = divmod(i, len(self.images))
        order = _order(len(self.images), self.recipe.seed, self.number, epoch)
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
        if not self.crop:
            return _padded(image.read(), self.image_size)
        parts = [image.read_part(*window) for window in self._windows(*image.grid(), rng)]
        return collate([_padded(part, self.crop) for part in parts])

    def _decoded(self, source: ImageFile, rng: np.random.Generator) -> Maps:
        image = source.decode()
        if self.recipe.augmentation == "resized_crop":
            return self._resized_crop(image, int(rng.integers(2**31)))
        check_aspect(image.shape[:2], self.image_size, smallest=STRIDE)
        pixels = torch.from_numpy(resize(image, self.image_size).copy())
        whole = _padded({"image": pixels}, self.image_size)
        if not self.crop:
            return whole
        windows = self._windows(pixels.shape[0] // STRIDE, pixels.shape[1] // STRIDE, rng)
        parts = [_padded({"image": _cut(pixels, *window)}, self.crop) for window in windows]
        cells = torch.tensor([window[:2] for window in windows])
        return collate(parts) | {"image": whole["input"], "cells": cells}

    def _resized_crop(self, image: NDArray[np.uint8], seed: int) -> Maps:
        size = self.crop or self.image_size
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pixels = v2.RandomResizedCrop((size, size))(pixels)
        return _padded({"image": pixels.permute(1, 2, 0)}, size)

    def _windows(self, rows: int, columns: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
        """Draw where crops begin in the grid, and their sizes there: smaller than asked for where the image is."""
        height, width = (min(self.crop // STRIDE, side) for side in (rows, columns))
        corners = rng.integers((rows - height + 1, columns - width + 1), size=(self.crops, 2)).tolist()
        return [(row, column, height, width) for row, column in corners]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, number: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, number, epoch, count]).permutation(count)


def _cut(pixels: Tensor, row: int, column: int, rows: int, columns: int) -> Tensor:
    top, left = row * STRIDE, column * STRIDE
    return pixels[top : top + rows * STRIDE, left : left + columns * STRIDE]


def _padded(maps: Maps, size: int) -> Maps:
    """Turn a part of an image and its maps into a sample of a square of `size` pixels."""
    maps = dict(maps)
    image = maps.pop("image")
    side = size // STRIDE
    rows, columns = image.shape[0] // STRIDE, image.shape[1] // STRIDE
    valid = torch.zeros(1, side, side, dtype=torch.bool)
    valid[:, :rows, :columns] = True
    padded = {name: F.pad(m, (0, 0, 0, side - columns, 0, side - rows))[None] for name, m in maps.items()}
    return {"input": torch.from_numpy(pad_and_normalize(image.numpy(), size))[None], "valid": valid, **padded}


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
