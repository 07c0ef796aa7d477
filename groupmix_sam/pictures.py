"""Pictures by the many: those of a folder, a list file or a tar."""

import glob
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from .errors import ImageReadError, InvalidInputError
from .images import decode_image

__all__ = ["SUFFIXES", "Picture", "evenly_spaced", "find_pictures", "name_pictures"]

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Picture:
    """A picture file, or, with a name, one that lies in a tar at an offset in bytes."""

    path: Path
    name: str = ""
    offset: int = 0
    size: int = -1

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)

    def read_bytes(self) -> bytes:
        """Return the encoded picture.

        Raises:
            ImageReadError: it cannot be read.
        """
        try:
            with self.path.open("rb") as f:
                f.seek(self.offset)
                return f.read(self.size)
        except FileNotFoundError as e:
            raise ImageReadError(f"there is no picture {self}: check the path.") from e
        except (OSError, ValueError) as e:  # a ValueError of a name that no file can have
            raise ImageReadError(f"{self} cannot be read ({e}): check the path and its permissions.") from e

    def decode(self) -> NDArray[np.uint8]:
        """Return the picture as H x W x 3, uint8, RGB, upright."""
        return decode_image(self.read_bytes(), self)


def find_pictures(source: str | PathLike[str]) -> list[Picture]:
    """Return the pictures in a folder and those below it, in a list file, or in a tar; sorted, but for a list's.

    A folder's tars are looked into as well: WebDataset shards such as SA-1B's, as they are. A list file, `.txt`, has a path a
    line, relative to the file.

    Raises:
        InvalidInputError: there is no such folder or file, or no picture in it.
    """
    source = Path(source)
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.suffix.lower() in {*SUFFIXES, ".tar"} and p.is_file())
    elif source.suffix.lower() == ".txt" and source.is_file():
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as e:
            raise InvalidInputError(f"{source} cannot be read as a list ({e}): write a path a line, in UTF-8.") from e
        files = [source.parent / line.strip() for line in lines if line.strip()]
    elif source.suffix.lower() == ".tar" and source.is_file():
        files = [source]
    else:
        raise InvalidInputError(
            f"there is no folder {source}: give one with pictures in it, a .tar, or a .txt with a path a line."
        )
    pictures = [p for file in files for p in (_in_tar(file) if file.suffix.lower() == ".tar" else [Picture(file)])]
    if not pictures:
        raise InvalidInputError(f"{source} has no picture in it: {', '.join(sorted(SUFFIXES))} are looked for, and .tar.")
    return pictures


def evenly_spaced(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """Return so many of them, evenly from first to last, or all if there are fewer."""
    count = min(count, len(pictures))
    return [pictures[i * len(pictures) // count] for i in range(count)]


def name_pictures(sources: Iterable[str | PathLike[str]]) -> dict[str, Picture]:
    """Return the pictures that sources stand for, each by a name: its file's, or its path below the folder or in the tar.

    Args:
        sources: Picture files, whose names may have `*`, `?` and `**`; and what `find_pictures` takes.

    Raises:
        InvalidInputError: a pattern, folder, list or tar has no picture, or two pictures have the same name.
    """
    named: dict[str, Picture] = {}
    for source in sources:
        for name, picture in _named(Path(source)):
            if named.setdefault(name, picture) != picture:
                raise InvalidInputError(f"{named[name]} and {picture} are both named {name}: give the folder that holds both.")
    return named


def _named(source: Path) -> list[tuple[str, Picture]]:
    if source.is_dir():
        return [(PurePath(p.path.relative_to(source), _inside(p.name)).as_posix(), p) for p in find_pictures(source)]
    if source.suffix.lower() in (".txt", ".tar"):
        return [(_inside(p.name) or p.path.name, p) for p in find_pictures(source)]
    if glob.has_magic(str(source)) and not source.exists():
        files = sorted(glob.glob(str(source), recursive=True))
        if not files:
            raise InvalidInputError(f"no file is like {source}: check the pattern.")
        return [pair for file in files for pair in _named(Path(file))]
    return [(source.name, Picture(source))]


def _inside(name: str) -> str:
    """Return a name in a tar without what would lead out of a folder, on any system: files are named after it."""
    path = PureWindowsPath(name)
    return "/".join(part for part in path.parts if part not in (path.anchor, ".."))


def _in_tar(path: Path) -> list[Picture]:
    # The standard library's index and not a stream: only with random access can a stopped run go on at the same sample.
    try:
        with tarfile.open(path, "r:") as tar:
            members = [m for m in tar if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES]
    except (OSError, tarfile.TarError) as e:
        raise InvalidInputError(f"{path} cannot be read as an uncompressed tar ({e}): fetch it again, or unpack it.") from e
    return [Picture(path, m.name, m.offset_data, m.size) for m in members]
