"""Pictures to distil on: found in a folder, read back from the teacher's cache whole or as crops with their features."""

import hashlib
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..encoders.config import SAM_MEAN, SAM_STD, STRIDE
from ..errors import InvalidInputError

__all__ = ["MAPS", "Maps", "crop_batches", "find_pictures", "pad_and_normalize", "whole_pictures"]

# What the cache holds of a picture beside itself: the teacher's features, and two of its maps on the way to them.
MAPS = ("features", "hint_in", "hint_out")
Maps = dict[str, Tensor]
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def find_pictures(folder: str | PathLike[str]) -> list[Path]:
    """Return the pictures in a folder and those below it, sorted.

    Raises:
        InvalidInputError: there is no such folder or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidInputError(f"there is no folder {folder}: give one with pictures in it.")
    pictures = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not pictures:
        raise InvalidInputError(f"{folder} has no picture in it: {', '.join(sorted(SUFFIXES))} are looked for.")
    return pictures


def picture_key(picture: Path, teacher: str, image_size: int) -> str:
    """Return a picture's name in the cache: of its content, the teacher's, the size and the cache's format."""
    return hashlib.sha256(picture.read_bytes() + f"{teacher}@{image_size}@1".encode()).hexdigest()[:24]


def pad_and_normalize(image: Tensor, image_size: int) -> Tensor:
    """Turn uint8 RGB, H x W x 3, into an encoder's input, 1 x 3 x S x S, padded at the bottom and the right."""
    out = torch.zeros(1, 3, image_size, image_size)
    out[:, :, : image.shape[0], : image.shape[1]] = normalize(image[None])
    return out


def normalize(images: Tensor) -> Tensor:
    """Turn uint8 RGB, B x H x W x 3, into an encoder's input, B x 3 x H x W."""
    mean = torch.tensor(SAM_MEAN) * 255
    std = torch.tensor(SAM_STD) * 255
    return ((images - mean) / std).permute(0, 3, 1, 2)


def whole_pictures(paths: Sequence[Path], image_size: int = 1024) -> Iterator[Maps]:
    """Yield pictures as an encoder sees them at inference: batches of one, padded; the teacher's maps are without padding."""
    for path in paths:
        rows, columns = _grid(path)
        crop = _read(path, 0, 0, rows, columns)
        image = crop.pop("image")
        yield {"input": pad_and_normalize(image, image_size), **{name: m[None] for name, m in crop.items()}}


def crop_batches(paths: Sequence[Path], size: int, batch_size: int, generator: torch.Generator) -> Iterator[Maps]:
    """Yield batches of random square crops forever, of every picture once before any comes again; `size` in pixels.

    Crops are aligned to the teacher's grid, so that its features of the whole picture are cut without interpolation. Pictures
    that are smaller than the crop are left out; where all are, as panoramas may be, the crop is as large as the widest of them.
    """
    grids = {path: _grid(path) for path in paths}
    cells = min(size // STRIDE, max(min(grid) for grid in grids.values()))
    large = [path for path, grid in grids.items() if min(grid) >= cells]

    def crops() -> Iterator[Maps]:
        while True:
            for i in torch.randperm(len(large), generator=generator).tolist():
                rows, columns = grids[large[i]]
                row = int(torch.randint(rows - cells + 1, (), generator=generator))
                column = int(torch.randint(columns - cells + 1, (), generator=generator))
                yield _read(large[i], row, column, cells, cells)

    stream = crops()
    while True:
        batch = [next(stream) for _ in range(batch_size)]
        stacked = {name: torch.stack([crop[name] for crop in batch]) for name in batch[0]}
        yield {"input": normalize(stacked.pop("image")), **stacked}


def _grid(path: Path) -> tuple[int, int]:
    """Return a cached picture's rows and columns of 16 x 16 pixels."""
    with safe_open(path, framework="pt") as f:
        rows, columns, _ = f.get_slice("features").get_shape()
    return rows, columns


def _read(path: Path, row: int, column: int, rows: int, columns: int) -> Maps:
    """Read a part of a cached picture; positions and sizes in the teacher's grid."""
    with safe_open(path, framework="pt") as f:
        crop = {name: f.get_slice(name)[row : row + rows, column : column + columns].float() for name in MAPS}
        top, left = row * STRIDE, column * STRIDE
        crop["image"] = f.get_slice("image")[top : top + rows * STRIDE, left : left + columns * STRIDE]
    return crop
