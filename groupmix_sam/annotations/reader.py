"""Reading annotations of any format, and finding the images that they are of."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import InvalidInputError
from ..images import ImageFile
from .coco import from_coco
from .labelme import from_labelme
from .types import AnnotatedImage
from .yolo import from_yolo

__all__ = ["Matched", "read_annotations"]

CLASSES = "classes.txt"
MAX_CLASSES = 10_000  # that YOLO's files may have by number alone
MAX_NAMED = 3

T = TypeVar("T")


class Matched(NamedTuple):
    """Annotated images by the image that they are of, and what could not be used, a sentence each."""

    images: dict[ImageFile, AnnotatedImage]
    left_out: list[str]


def read_annotations(source: str | PathLike[str], images: Sequence[ImageFile]) -> Matched:
    """Read the annotations of images: a COCO file, or a folder of COCO, LabelMe or YOLO files and those below it.

    An annotation is of the image with its path. Where no image has that, it is of the one with the same file name; of several,
    of the one whose folders agree. YOLO's files have the image's name but for the ending. Their classes are named by
    `classes.txt`, or else by numbers.

    Args:
        source: The file or the folder.
        images: As `find_images` returns them.

    Raises:
        InvalidInputError: there are no annotations, or a file cannot be read; the message names it.
        MissingExtraError: there are polygons, and what draws them is not installed.
    """
    source = Path(source)
    matched: dict[ImageFile, AnnotatedImage] = {}
    elsewhere: list[str] = []
    without_mask: list[str] = []
    find = _Finder(((_place(image), image) for image in images), lambda path: path.name)
    for path, annotated in _read_all(source, images, without_mask):
        image = find(annotated.path.absolute())
        if image is None:
            elsewhere.append(f"{annotated.path.name} in {path.name}" if path.suffix == ".json" else annotated.path.name)
        elif image in matched and matched[image].size != annotated.size:
            raise InvalidInputError(f"{source} has {image} twice, in two sizes: keep one of them.")
        else:
            known = matched[image].instances if image in matched else []
            matched[image] = AnnotatedImage(image.path, annotated.size, [*known, *annotated.instances])
    left_out = []
    if elsewhere:
        left_out.append(f"annotated images that are not among the images: {some(elsewhere)}")
    if without_mask:
        left_out.append(f"annotations without a mask: {some(without_mask)}")
    return Matched(matched, left_out)


def some(names: Iterable[str]) -> str:
    """Return how many there are, and the first of them."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:MAX_NAMED])}{', ...' if names[MAX_NAMED:] else ''})"


class _Finder(Generic[T]):
    """Finds what has a path by another one: what has its name; of several, what shares most of its folders.

    Args:
        paths: The paths, and what has them.
        named: Returns the part of a file's name that has to be the same.
    """

    def __init__(self, paths: Iterable[tuple[PurePath, T]], named: Callable[[PurePath], str]) -> None:
        self.named = named
        self.known: defaultdict[str, list[tuple[PurePath, T]]] = defaultdict(list)
        for path, value in paths:
            self.known[named(path)].append((path, value))

    def __call__(self, wanted: PurePath) -> T | None:
        found = self.known[self.named(wanted)]
        agreement = [_common_end(path.parent, wanted.parent) for path, _ in found]
        best = [pair for pair, count in zip(found, agreement, strict=True) if count == max(agreement)]
        if len(best) > 1:
            raise InvalidInputError(
                f"{wanted} may be of {best[0][0]} or of {best[1][0]}: give paths with folders that tell them."
            )
        return best[0][1] if best else None


def _place(image: ImageFile) -> PurePath:
    return PurePath(image.name) if image.name else image.path.absolute()


def _common_end(first: PurePath, second: PurePath) -> int:
    """Return how many parts two paths share at their ends."""
    pairs = zip(reversed(first.parts), reversed(second.parts), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first.parts), len(second.parts)))


def _read_all(source: Path, images: Sequence[ImageFile], without_mask: list[str]) -> Iterator[tuple[Path, AnnotatedImage]]:
    """Yield the file of each annotated image, and the image."""
    if source.is_file():
        files = [source]
    elif source.is_dir():
        files = sorted(path for path in source.rglob("*") if _is_annotation(path.relative_to(source)) and path.is_file())
    else:
        raise InvalidInputError(f"there are no annotations {source}: give a COCO file, or a folder of LabelMe or YOLO files.")
    found = False
    for path in files:
        if path.suffix.lower() != ".json":
            continue
        content = _load(path)
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            read = _read_coco(content, path, without_mask)
        elif isinstance(content, dict) and "shapes" in content:
            with _naming(path):
                read = [from_labelme(content, path.parent)]
        elif source.is_file():
            raise InvalidInputError(f"{path} is neither COCO's nor LabelMe's: give a COCO file, or a folder of annotations.")
        else:
            continue  # another program's
        found = True
        for annotated in read:
            yield path, annotated
    if found:
        return
    yield from _read_yolo(source, files, images)


def _is_annotation(path: PurePath) -> bool:
    """Return whether a path below a folder may be an annotation file's: hidden ones, as Jupyter's copies, are not."""
    return path.suffix.lower() in (".json", ".txt") and not any(part.startswith(".") for part in path.parts)


def _read_yolo(source: Path, files: Sequence[Path], images: Sequence[ImageFile]) -> Iterator[tuple[Path, AnnotatedImage]]:
    texts = (path.absolute() for path in files if path.suffix.lower() == ".txt" and path.name != CLASSES)
    find = _Finder(((path, path) for path in texts), lambda path: path.stem)
    known = next((path for path in (source / CLASSES, source.parent / CLASSES) if path.is_file()), None)
    lines: list[str] = []
    if known is not None:
        with _naming(known):
            lines = known.read_text(encoding="utf-8-sig").rstrip().splitlines()
    names = [line.strip() for line in lines] or [str(i) for i in range(MAX_CLASSES)]
    taken = False
    for image in images:
        path = find(_place(image))
        if path is None:
            continue
        taken = True
        pixels = image.decode()
        with _naming(path):
            read = from_yolo(path.read_text(encoding="utf-8"), Path(_place(image)), (pixels.shape[0], pixels.shape[1]), names)
        yield path, read
    if not taken:
        raise InvalidInputError(
            f"{source} has no annotations of these images: give a COCO file, a folder of LabelMe files, or one of YOLO files "
            "that are named as the images are."
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors about its content."""
    try:
        yield
    except (InvalidInputError, OSError, UnicodeDecodeError) as e:
        raise InvalidInputError(f"{path}: {e}") from e


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, RecursionError, ValueError) as e:
        raise InvalidInputError(f"{path} cannot be read as JSON ({e}): fix or remove it.") from e


def _read_coco(content: dict[str, Any], path: Path, without_mask: list[str]) -> list[AnnotatedImage]:
    """Return a COCO file's images; note annotations that have a box alone."""
    entries = content["annotations"]
    if isinstance(entries, list):
        masks = [entry for entry in entries if not isinstance(entry, dict) or entry.get("segmentation")]
        boxes = [entry for entry in entries if isinstance(entry, dict) and not entry.get("segmentation")]
        without_mask += [f"annotation {entry.get('id')} in {path.name}" for entry in boxes]
        content = content | {"annotations": masks}
    with _naming(path):
        return from_coco(content, path.parent)
