"""Files that are written whole or not at all, and their checksums."""

import hashlib
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .errors import SaveError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["checksum", "make_folder", "sha256", "write_beside"]


def sha256(path: Path) -> str:
    """Return a file's sha256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksum(tensors: dict[str, "Tensor"]) -> str:
    """Return what changes with the tensors' names, types, shapes and values."""
    import torch

    crc = 0
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        crc = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SaveError(f"the folder {folder} cannot be made ({e}): give another place.") from e


def write_beside(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `path`, then rename: a failure leaves what was there before."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    except (OSError, SafetensorError) as e:
        raise SaveError(f"{path} could not be written ({e}): free some space or give another place; nothing was lost.") from e
    finally:
        with suppress(OSError):  # of a path that no file can have
            part.unlink(missing_ok=True)
