"""What the teacher says of each image, kept on disk so that it is asked once, whatever the size of the student's input.

An image has two files: the teacher's maps, which students of every input size share, and the resized image, which is small.
"""

import hashlib
import shutil
from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..encoders.config import STRIDE
from ..errors import ImageReadError, InvalidInputError
from ..files import checksum, make_folder, write_beside
from ..images import ImageFile
from .data import CachedImage, Grid, Maps, as_input, resized
from .run import process_state
from .teacher import Teacher

__all__ = ["cache_bytes", "cache_features", "is_whole", "write_tensors"]

# Goes into the keys: to be changed with what a file holds or how an image is resized.
FORMAT = "4"


class UnusableImagesError(InvalidInputError):
    """None of the images can be used."""


def cache_bytes(images: Sequence[ImageFile], teacher: Teacher, grid: Grid = Grid()) -> int:  # noqa: B008  it is frozen
    """Return how many bytes a cache of these images takes at most, when all are square."""
    side = grid.image_size // grid.stride
    return len(images) * (3 * grid.image_size**2 + 2 * side**2 * sum(teacher.channels.values()))


def cache_features(
    images: Sequence[ImageFile],
    teacher: Teacher,
    folder: str | PathLike[str],
    grid: Grid = Grid(),  # noqa: B008
) -> tuple[list[CachedImage], list[ImageFile]]:
    """Write what the teacher says of each image, once; return the cached images, and those that cannot be used.

    The maps of a photo, H x W x C in fp16 without padding, take about 4 MB at the teacher's 1024 pixels. Their file is named
    after the image's content, the teacher and the teacher's image size; the resized image's after the content and the
    student's image size. What has changed is computed anew, and so is what was damaged. Images that cannot be read, or whose
    short side would be under 16 pixels, are skipped. Several processes (accelerate) share out the images; all of them return
    the same.

    Args:
        images: The images.
        teacher: Asked for each image whose maps are missing.
        folder: Where the files are kept; made if need be.
        grid: The student's input, as `Grid.of` returns it.

    Raises:
        InvalidInputError: none of the images can be used, there is none, or the disk has too little room for them.
        SaveError: the folder cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    state = process_state()
    entries = [_entry(folder, image, teacher, grid) for image in images]
    there = {file for entry in entries if entry is not None for file in (entry.image, entry.maps) if file.is_file()}
    needed = cache_bytes(images, teacher, grid) - sum(file.stat().st_size for file in there)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidInputError(
            f"{folder} may need {needed / 1e9:.1f} GB more and the disk has {free / 1e9:.1f}: "
            "put the cache elsewhere, or do without one."
        )
    mine = range(state.process_index, len(images), state.num_processes)
    for i in tqdm(mine, desc="teacher", unit="image", disable=None if state.is_main_process else True):
        entry = entries[i]
        if entry is not None:
            _complete(entry, images[i], teacher, grid, state.device)
    state.wait_for_everyone()
    # Told from the files, so that every process comes to the same without a word to the others.
    usable = {entry for entry in entries if entry is not None and entry.image.is_file() and entry.maps.is_file()}
    skipped = [image for image, entry in zip(images, entries, strict=True) if entry not in usable]
    if not usable:
        some = ", ".join(map(str, skipped[:3])) + (" and others" if skipped[3:] else "")
        raise UnusableImagesError(f"{some} cannot be read or are too narrow, and there is no other image: fix or remove them.")
    return sorted(usable, key=lambda entry: entry.maps), skipped


def _entry(folder: Path, image: ImageFile, teacher: Teacher, grid: Grid) -> CachedImage | None:
    """Return where the cache keeps an image, None if it cannot be read."""
    try:
        content = image.read_bytes()
    except ImageReadError:
        return None

    def file(kind: str, key: str) -> Path:
        return folder / f"{kind}-{hashlib.sha256(content + f'{key}@{FORMAT}'.encode()).hexdigest()[:32]}.safetensors"

    maps = file("maps", f"{teacher.key}@{grid.teacher_size}")
    return CachedImage(file("image", str(grid.image_size)), maps, grid.stride)


def _complete(entry: CachedImage, image: ImageFile, teacher: Teacher, grid: Grid, device: torch.device) -> None:
    """Write what an image lacks in the cache; remove what is there of one that cannot be used."""
    has_image, has_maps = is_whole(entry.image), is_whole(entry.maps)
    if has_image and has_maps:
        return
    try:
        decoded = image.decode()
        ours, theirs = (resized(decoded, size) for size in (grid.image_size, grid.teacher_size))
    except (ImageReadError, InvalidInputError):
        for file in (entry.image, entry.maps):
            file.unlink(missing_ok=True)
        return
    if not has_maps:
        write_tensors(entry.maps, _ask(theirs, teacher, grid.teacher_size, device))
    if not has_image:
        write_tensors(entry.image, {"image": ours})


def _ask(pixels: Tensor, teacher: Teacher, size: int, device: torch.device) -> Maps:
    """Return the teacher's maps of an image whose long side is `size`, h x w x C, of the cells that it fills."""
    rows, columns = pixels.shape[0] // STRIDE, pixels.shape[1] // STRIDE
    maps = teacher(as_input(pixels, size).to(device))
    return {name: m[0].permute(1, 2, 0)[:rows, :columns].half().cpu().contiguous() for name, m in maps.items()}


def write_tensors(path: Path, tensors: Maps) -> None:
    """Write tensors, beside and then renamed, with a checksum for `is_whole`."""
    write_beside(path, partial(save_file, tensors, metadata={"crc32": checksum(tensors)}))


def is_whole(path: Path) -> bool:
    """Return whether a file is there and holds what was written."""
    try:
        with safe_open(path, framework="pt") as f:
            maps = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  it is no dict
            return (f.metadata() or {}).get("crc32") == checksum(maps)
    except (OSError, SafetensorError):
        return False
