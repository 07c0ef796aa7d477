"""Annotation files of many images, written while the instances are found."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageReadError, InvalidInputError, SaveError, UnknownNameError, import_extra
from ..files import make_folder, write_beside
from ..images import ImageFile
from ..masks import TOLERANCE
from ..visualize import draw_masks
from .coco import add_image, start_coco
from .contours import to_contours
from .index_mask import to_mask
from .labelme import to_labelme
from .types import AnnotatedImage, Instance
from .yolo import to_yolo

__all__ = ["FORMATS", "AnnotationWriter", "Outcome", "annotate", "leave_out_drawings"]

# Each format's ending, which follows the image's name; COCO has one file for all images.
FORMATS = {
    "overlay": "_overlay.png",
    "mask": "_mask.png",
    "coco": ".json",
    "contours": "_contours.json",
    "labelme": ".json",
    "yolo": ".txt",
}
# Formats that are images themselves.
DRAWN = ("overlay", "mask")
# Formats that people correct by hand.
CORRECTED = ("coco", "labelme", "yolo")
# What OpenCV traces outlines for.
POLYGONS = {"contours", "labelme", "yolo"}


class AnnotationWriter:
    """Writes the instances of many images; everything that could fail is checked before the first image.

    Use it in a `with` statement: `close` writes what covers all images, after an error too.

    Args:
        output: A file, a folder, a binary stream such as `sys.stdout.buffer`, which takes one file, or None for the working
            directory.
        formats: Names out of `FORMATS`.
        images: All images that will be written, by name, as `name_images` returns them.
        categories: All categories that the instances will have.
        tolerance: Polygons' simplification tolerance in pixels.
        draw_prompts: Draw the prompts into overlays.
        overwrite: Replace existing annotation files, which may have been corrected by hand.

    Raises:
        InvalidInputError: the files do not fit there, two images share a name, or a file is already there.
        UnknownNameError: there is no such format.
    """

    def __init__(
        self,
        output: str | PathLike[str] | BinaryIO | None,
        formats: Sequence[str],
        images: Mapping[str, ImageFile],
        categories: Sequence[str],
        *,
        tolerance: float = TOLERANCE,
        draw_prompts: bool = True,
        overwrite: bool = False,
    ) -> None:
        for name in formats:
            if name not in FORMATS:
                raise UnknownNameError.near("format", name, FORMATS)
        if not 0 <= tolerance < float("inf"):
            raise InvalidInputError(f"the tolerance is {tolerance}: give 0 or more pixels.")
        if not formats:
            raise InvalidInputError(f"there is no format: give one or more of {', '.join(FORMATS)}.")
        if POLYGONS.intersection(formats):
            import_extra("cv2", "stream")  # now rather than after minutes of segmenting
        self.formats, self.categories, self.tolerance = list(dict.fromkeys(formats)), list(dict.fromkeys(categories)), tolerance
        self.draw_prompts = draw_prompts
        self._stream: BinaryIO | None = None
        self._file: Path | None = None
        self._folder = Path()
        one_file = len(self.formats) == 1 and (len(images) == 1 or self.formats == ["coco"])
        if output is not None and not isinstance(output, (str, PathLike)):
            self._stream = output
            if not one_file:
                raise InvalidInputError(
                    "a stream such as stdout takes one file: give one format, and one image or the format coco."
                )
        else:
            self._place(Path(output or ""), one_file)
            if self._file is None:
                self._check_names(list(images))
            self._check_there(images, overwrite)
        self._wrote_classes = False
        self.classes = self._classes()
        self._coco = start_coco(self.categories)  # encoded at once: many images' masks would fill the memory

    def __enter__(self) -> "AnnotationWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            with suppress(SaveError):  # the error that is on its way says more
                self.close()

    def _place(self, output: Path, one_file: bool) -> None:
        """Take `output` as a file if its name has an ending, else as a folder."""
        self._folder = output
        if not output.suffix or output.is_dir():
            return
        self._file, self._folder = output, output.parent
        ending = "." + FORMATS[self.formats[0]].rpartition(".")[2]
        if not one_file:
            raise InvalidInputError(f"{output} is one file: give a folder for several images or formats.")
        if output.suffix.lower() != ending or not output.parent.is_dir():
            raise InvalidInputError(f"cannot write {output}: give a file that ends in {ending}, in a folder that exists.")

    def _check_names(self, names: Sequence[str]) -> None:
        taken: dict[Path, str] = {}
        for path, name in ((self._path(kind, name), name) for kind in self.formats if kind != "coco" for name in names):
            if taken.setdefault(path, name) != name:
                raise InvalidInputError(f"{path} would belong to both {taken[path]} and {name}: annotate them one by one.")
        if "coco" in self.formats and "labelme" in self.formats and self._path("coco", "") in taken:
            raise InvalidInputError(f"{self._path('coco', '')} would be COCO's file and LabelMe's: rename the image.")

    def _check_there(self, images: Mapping[str, ImageFile], overwrite: bool) -> None:
        given = {_identity(image.path) for image in images.values()} - {None}
        there = []
        for path, kind in {self._path(kind, name): kind for kind in self.formats for name in images}.items():
            identity = _identity(path)
            if identity in given:
                raise InvalidInputError(f"{path} is one of the images and would be lost: give another output.")
            if kind in CORRECTED and identity is not None:
                there.append(path)
        if there and not overwrite:
            more = f" and {len(there) - 1} more" if there[1:] else ""
            raise InvalidInputError(
                f"{there[0]}{more} would be overwritten, with all corrections: give another output, or set overwrite."
            )

    def _classes(self) -> list[str]:
        """Return YOLO's categories by number: first those of the labels that the folder may have already, then the others."""
        path = self._folder / "classes.txt"
        known: list[str] = []
        if "yolo" in self.formats and self._stream is None and _identity(path) is not None:
            try:
                # Editors on Windows write a byte-order mark, which would become part of the first name.
                known = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
            except (OSError, ValueError) as e:
                raise InvalidInputError(f"{path} cannot be read ({e}): fix it, or give another output.") from e
        self._new_classes = set(self.categories) - set(known)
        return known + [name for name in self.categories if name not in known]

    def _path(self, kind: str, name: str) -> Path:
        if self._file is not None:
            return self._file
        if kind == "coco":
            return self._folder / "annotations.json"
        return self._folder / PurePath(name).with_name(PurePath(name).stem + FORMATS[kind])

    def write(self, name: str, image: NDArray[np.uint8], annotated: AnnotatedImage) -> list[str]:
        """Write an image's files; COCO's, which covers all images, follows in `close`.

        Args:
            name: The image's name, a key of `images`.
            image: H x W x 3, RGB.
            annotated: Its instances.

        Returns:
            The paths of the files, empty when writing to a stream.

        Raises:
            SaveError: a file cannot be written.
        """
        written = []
        for kind in self.formats:
            if kind == "coco":
                add_image(self._coco, annotated, self._folder)
            else:
                if kind == "yolo" and self._new_classes:
                    self._write_classes()  # before the first label: what a kill leaves must mean the same later
                written += self._write(kind, name, self._render(kind, name, image, annotated))
        return written

    def close(self) -> list[str]:
        """Write what covers all images that were written, and return the files' paths; a second call does nothing.

        Raises:
            SaveError: a file cannot be written.
        """
        written = []
        if self._wrote_classes:
            written.append(str(self._folder / "classes.txt"))
        self._wrote_classes = False
        content, self._coco = self._coco, start_coco(self.categories)
        if content["images"]:
            written += self._write("coco", "", _json(content))
        return written

    def _write_classes(self) -> None:
        if self._stream is not None:
            return
        path = self._folder / "classes.txt"
        make_folder(path.parent)
        write_beside(path, lambda part: part.write_text("".join(f"{name}\n" for name in self.classes), encoding="utf-8"))
        self._new_classes, self._wrote_classes = set(), True

    def _render(self, kind: str, name: str, image: NDArray[np.uint8], annotated: AnnotatedImage) -> bytes:
        if kind == "overlay":
            return _png(_overlay(image, annotated, self.draw_prompts))
        if kind == "mask":
            return _png(to_mask(annotated))
        if kind == "yolo":
            return to_yolo(annotated, self.classes, self.tolerance).encode()
        folder = Path() if self._stream is not None else self._path(kind, name).parent
        return _json((to_contours if kind == "contours" else to_labelme)(annotated, folder, self.tolerance))

    def _write(self, kind: str, name: str, data: bytes) -> list[str]:
        if self._stream is not None:
            self._stream.write(data)
            self._stream.flush()
            return []
        path = self._path(kind, name)
        make_folder(path.parent)
        write_beside(path, lambda part: part.write_bytes(data))
        return [str(path)]


@dataclass(frozen=True)
class Outcome:
    """What became of an image.

    Attributes:
        name: Its name among the images.
        source: Its file.
        annotated: The instances in it; None after an error.
        files: The files that were written.
        error: Why the image was skipped; empty if it was not.
    """

    name: str
    source: ImageFile
    annotated: AnnotatedImage | None = None
    files: list[str] = field(default_factory=list)
    error: str = ""


def annotate(
    images: Mapping[str, ImageFile], find: Callable[[str, NDArray[np.uint8]], list[Instance]], writer: AnnotationWriter
) -> Iterator[Outcome]:
    """Find the instances in images, write them, and yield each image's outcome.

    An image that cannot be read or used is skipped, and its outcome says why; the error is raised if it is the only image.

    Args:
        images: By name, as `name_images` returns them.
        find: Returns the instances of an image, given its name and its pixels, H x W x 3, RGB.
        writer: Where they are written.
    """
    for name, source in images.items():
        try:
            image = source.decode()
            size = image.shape[0], image.shape[1]
            annotated = AnnotatedImage(source.path / source.name, size, find(name, image))
        except (ImageReadError, InvalidInputError) as e:
            if len(images) == 1:
                raise
            yield Outcome(name, source, error=str(e))
            continue
        yield Outcome(name, source, annotated, writer.write(name, image, annotated))


def leave_out_drawings(images: Mapping[str, ImageFile]) -> dict[str, ImageFile]:
    """Return the images without those that are overlays or masks of others among them."""
    stems = {image.path.with_suffix("") for image in images.values()}
    endings = tuple(FORMATS[kind] for kind in DRAWN)

    def is_drawing(path: Path) -> bool:
        return any(path.name.endswith(end) and Path(str(path).removesuffix(end)) in stems for end in endings)

    return {name: image for name, image in images.items() if not is_drawing(image.path)}


def _overlay(image: NDArray[np.uint8], annotated: AnnotatedImage, draw_prompts: bool) -> Any:
    prompts = [instance.prompt for instance in annotated.instances if draw_prompts and instance.prompt is not None]
    points = [point for prompt in prompts for point in prompt.points]
    labels = [label for prompt in prompts for label in prompt.labels]
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    return draw_masks(
        image,
        (instance.mask for instance in annotated.instances),
        points=np.array(points) if points else None,
        labels=np.array(labels) if points else None,
        box=np.array(boxes) if boxes else None,
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is the same of all paths to one file; None if there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a ValueError of a name that no file can have
        return None
    return status.st_dev, status.st_ino


def _png(image: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()
