"""Images: finding those of a folder, a list or a tar, and reading them."""

import glob
import io
import logging
import os
import struct
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL import ImageFile as PillowFile

from .errors import ImageReadError, InvalidInputError, MissingExtraError, import_extra, without_secrets

__all__ = [
    "SUFFIXES",
    "ImageFile",
    "as_rgb",
    "decode_image",
    "evenly_spaced",
    "exif_orientation",
    "find_images",
    "is_image",
    "listed_path",
    "name_images",
    "read_image",
    "report_left_out",
]

T = TypeVar("T")

SUFFIXES = {".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# What is expected beside images, and not reported as left out: annotations and notes.
BESIDE = {"", ".csv", ".json", ".jsonl", ".md", ".tar", ".txt", ".xml", ".yaml", ".yml"}
# Pillow's plugin for it would start Ghostscript.
POSTSCRIPT = "EPS"
# The brands of HEIF files, bytes 8 to 12, that Pillow reads with pillow-heif alone.
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """An image file; with a name, a member of a tar, `size` bytes at `offset`."""

    path: Path
    name: str = ""
    offset: int = 0
    size: int = -1

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)

    def read_bytes(self) -> bytes:
        """Return the encoded image.

        Raises:
            ImageReadError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as f:
                f.seek(self.offset)
                return f.read(self.size)
        except FileNotFoundError as e:
            raise ImageReadError(f"there is no image {self}: check the path.") from e
        except (OSError, ValueError) as e:  # a ValueError of a name that no file can have
            raise ImageReadError(f"{self} cannot be read ({e}): check the path and its permissions.") from e

    def decode(self) -> NDArray[np.uint8]:
        """Return the image, H x W x 3, uint8, RGB, turned upright by its EXIF data."""
        return decode_image(self.read_bytes(), self)


def find_images(source: str | PathLike[str]) -> list[ImageFile]:
    """Return the images of a folder and its subfolders, of a list file, or of a tar; sorted, except for a list's.

    Links are followed. Hidden files and folders are left out. Other files that are no images are named in a warning of the
    logger "groupmix_sam.images", which goes to stderr by default. The members of tars, such as SA-1B's or WebDataset's shards,
    are images too. A list file, `.txt`, has one path per line, relative to the file.

    Raises:
        InvalidInputError: there is no such folder or file, or it has no image.
    """
    source = Path(source)
    if source.is_dir():
        files = _files_below(source)
    elif source.suffix.lower() == ".txt" and source.is_file():
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as e:
            raise InvalidInputError(f"{source} cannot be read as a list ({e}): write a path a line, in UTF-8.") from e
        files = [listed_path(source.parent, line.strip()) for line in lines if line.strip()]
    elif source.suffix.lower() == ".tar" and source.is_file():
        files = [source]
    else:
        raise InvalidInputError(
            f"there is no folder {source}: give one with images in it, a .tar, or a .txt with a path a line."
        )
    images = [p for file in files for p in (_in_tar(file) if file.suffix.lower() == ".tar" else [ImageFile(file)])]
    if not images:
        raise InvalidInputError(f"{source} has no image in it: give a folder with {', '.join(sorted(SUFFIXES))} or .tar files.")
    return images


def is_image(name: str | PathLike[str]) -> bool:
    """Return whether a path below a folder is an image's: it ends as one, and no part of it is hidden, as macOS's `._x.jpg`."""
    path = PurePath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts if part != "..")


def listed_path(folder: Path, name: str) -> Path:
    """Return the path that a text file in `folder` names, which may have been written on Windows."""
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path


def report_left_out(source: object, names: Iterable[str]) -> None:
    """Warn of files that are neither images nor what is expected beside them, so that nobody misses an image in silence."""
    names = sorted(name for name in names if not _is_expected(PurePath(name)))
    if names:
        shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
        files = "1 file" if len(names) == 1 else f"{len(names)} files"
        place = without_secrets(str(source))
        logger.warning("%s in %s left out, no image that can be read: %s", files, place, shown)


def _is_expected(path: PurePath) -> bool:
    return path.suffix.lower() in BESIDE or any(part.startswith(".") for part in path.parts)


def _files_below(folder: Path) -> list[Path]:
    """Return the images and tars in a folder and those below it, linked ones too, sorted."""
    found: list[Path] = []
    left_out: list[str] = []
    seen: set[tuple[int, int]] = set()  # a link may lead back to a folder above it
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_report_unreadable):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(place, name)
            if (is_image(name) or (path.suffix.lower() == ".tar" and not name.startswith("."))) and path.is_file():
                found.append(path)
            else:
                left_out.append(name)
    report_left_out(folder, left_out)
    return sorted(found)


def _report_unreadable(error: OSError) -> None:
    logger.warning("the folder %s is left out, it cannot be read (%s)", error.filename, error.strerror)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items, such as images, evenly spaced from first to last, or all if there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def name_images(sources: Iterable[str | PathLike[str]]) -> dict[str, ImageFile]:
    """Return the images of several sources by name: the file's name, or its path in the folder or tar.

    Args:
        sources: Image files; patterns with `*`, `?` and `**`; and folders, lists and tars as for `find_images`.

    Raises:
        InvalidInputError: a pattern, folder, list or tar has no image, or two images have the same name.
    """
    named: dict[str, ImageFile] = {}
    for source in sources:
        for name, image in _named(Path(source)):
            if named.setdefault(name, image) != image:
                raise InvalidInputError(f"{named[name]} and {image} are both named {name}: give the folder that holds both.")
    return named


def _named(source: Path) -> list[tuple[str, ImageFile]]:
    if source.is_dir():
        return [(PurePath(p.path.relative_to(source), _inside(p.name)).as_posix(), p) for p in find_images(source)]
    if source.suffix.lower() in (".txt", ".tar"):
        return [(_inside(p.name) or p.path.name, p) for p in find_images(source)]
    if glob.has_magic(str(source)) and not source.exists():
        files = sorted(glob.glob(str(source), recursive=True))
        if not files:
            raise InvalidInputError(f"no file matches {source}: check the pattern.")
        return [pair for file in files for pair in _named(Path(file))]
    return [(source.name, ImageFile(source))]


def _inside(name: str) -> str:
    """Return a name in a tar without parts that lead out of a folder on any system: output files are named after it."""
    path = PureWindowsPath(name)
    return "/".join(part for part in path.parts if part not in (path.anchor, ".."))


def _in_tar(path: Path) -> list[ImageFile]:
    # An index and not a stream: a stopped run needs random access to resume at the same sample.
    try:
        with tarfile.open(path, "r:") as tar:
            files = [m for m in tar if m.isfile()]
    except (OSError, tarfile.TarError) as e:
        raise InvalidInputError(f"{path} cannot be read as an uncompressed tar ({e}): fetch it again, or unpack it.") from e
    members = [m for m in files if is_image(_inside(m.name))]
    report_left_out(path, (m.name for m in files if not is_image(_inside(m.name))))
    return [ImageFile(path, m.name, m.offset_data, m.size) for m in members]


# A 16-bit image without a higher value uses 12 bits or fewer, or is too dark.
DIM = 4095


def read_image(path: str | PathLike[str], *, upright: bool = True) -> NDArray[np.uint8]:
    """Read an image as H x W x 3, uint8, RGB.

    Grayscale and palettes become RGB, 16 bits become 8, transparency is dropped. HEIC needs the extra "heic".

    Args:
        path: The file.
        upright: Turn the image as its EXIF data say; without it the pixels are taken as they are stored.

    Warns:
        UserWarning: it has 16 bits and uses 12 or fewer, so that it comes out nearly black.

    Raises:
        ImageReadError: it does not exist, is no image, is truncated, or is larger than Pillow's limit.
    """
    if not isinstance(path, (str, PathLike)):
        raise InvalidInputError(f"the image is {path!r}: give a path, or as_rgb() an array.")
    return decode_image(ImageFile(Path(path)).read_bytes(), path, upright=upright)


def decode_image(data: bytes, name: object, max_pixels: int | None = None, *, upright: bool = True) -> NDArray[np.uint8]:
    """Decode an image file's bytes as `read_image` does. Any number of threads may do so.

    Args:
        data: The file's bytes.
        name: What errors call the image.
        max_pixels: A limit below Pillow's, checked before decoding.
        upright: As for `read_image`.

    Raises:
        ImageReadError: they are no image, are truncated, or exceed a limit.
    """
    try:
        with _open(data, name) as file:
            limits = [limit for limit in (max_pixels, Image.MAX_IMAGE_PIXELS) if limit is not None]
            if limits and file.width * file.height > min(limits):
                raise ImageReadError(
                    f"{name} has {file.width} x {file.height} pixels, more than {min(limits) / 1e6:g} million: scale it down "
                    "first."
                )
            image = ImageOps.exif_transpose(file) if upright else file
            image.info.pop("transparency", None)  # Pillow would warn that it is dropped
            if not image.mode.startswith(("I", "F")):
                return np.array(image.convert("RGB"))
            values = _as_uint16(np.asarray(image), name)  # deeper than 8 bits, which Pillow would clip rather than scale
    except ImageReadError:
        raise
    except UnidentifiedImageError as e:  # whose message only gives a memory address
        raise ImageReadError(f"{name} cannot be read as an image: convert it to PNG or JPEG.") from e
    except Exception as e:  # damaged files make Pillow raise nearly anything
        raise ImageReadError(f"{name} cannot be read as an image ({e}): convert it to PNG or JPEG.") from e
    if 0 < values.max() <= DIM:
        warnings.warn(
            f"{name} has 16 bits and no value above {values.max()}, so it is nearly black where white is 65535: if it has "
            "fewer bits, scale it to 16 first.",
            stacklevel=2,
        )
    return as_rgb(values)


def exif_orientation(path: str | PathLike[str]) -> int:
    """Return the EXIF orientation of an image, 1 to 8: 1 is upright, and 2 to 4 keep width and height.

    Raises:
        ImageReadError: it is no image that can be read.
    """
    data = ImageFile(Path(path)).read_bytes()
    try:
        with _open(data, path) as file:
            orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except ImageReadError:
        raise
    except Exception as e:  # damaged files make Pillow raise nearly anything
        raise ImageReadError(f"{path} cannot be read as an image ({e}): convert it to PNG or JPEG.") from e
    return int(orientation) if orientation in range(1, 9) else 1


def _open(data: bytes, name: object) -> PillowFile.ImageFile:
    """Open an image as Pillow's `Image.open` does, but for its warning about large ones.

    To silence that warning, or to make it an error, would change the filters of all threads. The caller checks the size.
    """
    try:
        return _open_plugin(data)
    except UnidentifiedImageError:
        if data[4:8] != b"ftyp" or data[8:12] not in HEIF_BRANDS:
            raise
        try:
            import_extra("pillow_heif", "heic").register_heif_opener()
        except MissingExtraError as e:
            raise ImageReadError(f"{name} is HEIC: {e}") from e
        return _open_plugin(data)


def _open_plugin(data: bytes) -> PillowFile.ImageFile:
    for load in (Image.preinit, Image.init):  # first the common formats alone, as importing all takes long
        load()
        for kind in Image.ID:
            factory, accept = Image.OPEN[kind]
            if kind == POSTSCRIPT:
                continue
            if accept is None or accept(data[:16]) is True:
                try:
                    return factory(io.BytesIO(data), "")
                except (SyntaxError, IndexError, TypeError, struct.error):
                    continue  # of another format, which begins alike
    raise UnidentifiedImageError("no plugin of Pillow takes it")


def as_rgb(image: Any) -> NDArray[np.uint8]:
    """Return an image as H x W x 3, uint8, RGB.

    Args:
        image: H x W, H x W x 1, H x W x 3 (RGB) or H x W x 4 (RGBA, whose transparency is dropped); uint8, or uint16,
            which is scaled to 8 bits.
    """
    if not isinstance(image, np.ndarray):
        raise InvalidInputError(f"the image is a {type(image).__name__}: give a NumPy array, or use read_image(path).")
    if image.dtype == np.uint16:
        image = np.round(image / 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise InvalidInputError(f"the image has dtype {image.dtype}: give uint8 from 0 to 255, or uint16 to 65535.")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise InvalidInputError(f"the image has shape {image.shape}: give H x W, H x W x 3 or H x W x 4.")
    if image.size == 0:
        raise InvalidInputError(f"the image has shape {image.shape}, no pixel: check where it comes from.")
    if image.shape[2] == 1:
        image = image.repeat(3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def _as_uint16(values: NDArray[Any], name: object) -> NDArray[np.uint16]:
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ImageReadError(f"{name} has values that are not 8 or 16 bits, from {values.min()} to {values.max()}: convert it.")
    return values.astype(np.uint16)
