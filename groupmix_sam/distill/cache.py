"""What the teacher says of each image, kept on disk: one safetensors file an image, so that it is asked once."""

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
from ..preprocess import check_aspect, pad_and_normalize, resize
from .data import CachedImage, Maps
from .run import process_state
from .teacher import Teacher

__all__ = ["cache_bytes", "cache_features"]

# Goes into the keys: to be changed with what a file holds or how an image is resized.
FORMAT = "3"


def cache_bytes(images: Sequence[ImageFile], teacher: Teacher, image_size: int = 1024) -> int:
    """Return how many bytes a cache of these images takes at most, when all are square."""
    pixel = 3 + 2 * sum(teacher.channels.values()) / STRIDE**2
    return round(len(images) * image_size**2 * pixel)


def cache_features(
    images: Sequence[ImageFile], teacher: Teacher, folder: str | PathLike[str], image_size: int = 1024
) -> tuple[list[CachedImage], list[ImageFile]]:
    """Write what the teacher says of each image, once; return the cached images, and those that cannot be used.

    A file holds the resized image and the teacher's maps without padding, H x W x C in fp16: about 6 MB for a photo. It is
    named after the image's content, the teacher, the size and the format: what has changed is computed anew, and so is what
    was damaged. Images that cannot be read, or whose short side would be under 16 pixels, are skipped. Several processes
    (accelerate) share out the images; all of them return the same.

    Raises:
        InvalidInputError: none of the images can be used, there is none, or the disk has too little room for them.
        SaveError: the folder cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    state = process_state()
    paths = [_path(folder, image, teacher, image_size) for image in images]
    there = {path for path in paths if path is not None and path.is_file()}
    needed = cache_bytes(images, teacher, image_size) - sum(path.stat().st_size for path in there)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidInputError(
            f"{folder} may need {needed / 1e9:.1f} GB more and the disk has {free / 1e9:.1f}: "
            "put the cache elsewhere, or do without one."
        )
    mine = range(state.process_index, len(images), state.num_processes)
    for i in tqdm(mine, desc="teacher", unit="image", disable=None if state.is_main_process else True):
        path = paths[i]
        if path is None or _is_whole(path):
            continue
        try:
            image = images[i].decode()
            check_aspect(image.shape[:2], image_size, smallest=STRIDE)
            pixels = torch.from_numpy(resize(image, image_size).copy())
        except (ImageReadError, InvalidInputError):
            path.unlink(missing_ok=True)
            continue
        maps = _ask(pixels, teacher, image_size, state.device)
        write_beside(path, partial(save_file, maps, metadata={"crc32": checksum(maps)}))
    state.wait_for_everyone()
    # Told from the files, so that every process comes to the same without a word to the others.
    skipped = [image for image, path in zip(images, paths, strict=True) if path is None or not path.is_file()]
    cached = sorted({path for path in paths if path is not None and path.is_file()})
    if not cached:
        some = ", ".join(map(str, skipped[:3])) + (" and others" if skipped[3:] else "")
        raise InvalidInputError(f"{some} cannot be read or are too narrow, and there is no other image: mend or remove them.")
    return [CachedImage(path) for path in cached], skipped


def _path(folder: Path, image: ImageFile, teacher: Teacher, image_size: int) -> Path | None:
    """Return where the cache keeps an image, None if it cannot be read."""
    try:
        content = image.read_bytes()
    except ImageReadError:
        return None
    key = hashlib.sha256(content + f"{teacher.key}@{image_size}@{FORMAT}".encode()).hexdigest()
    return folder / f"{key[:32]}.safetensors"


def _ask(pixels: Tensor, teacher: Teacher, image_size: int, device: torch.device) -> Maps:
    """Return an image whose long side is `image_size`, and the teacher's maps of it, all H x W x C."""
    rows, columns = pixels.shape[0] // STRIDE, pixels.shape[1] // STRIDE
    maps = teacher(torch.from_numpy(pad_and_normalize(pixels.numpy(), image_size))[None].to(device))
    out = {name: m[0].permute(1, 2, 0)[:rows, :columns].half().cpu().contiguous() for name, m in maps.items()}
    return out | {"image": pixels}


def _is_whole(path: Path) -> bool:
    """Return whether a file is there and holds what was written."""
    try:
        with safe_open(path, framework="pt") as f:
            maps = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  it is no dict
            return (f.metadata() or {}).get("crc32") == checksum(maps)
    except (OSError, SafetensorError):
        return False
