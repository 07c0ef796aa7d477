"""What every annotation format holds: instances and the image that they are in."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, UnknownNameError
from ..masks import Mask, Rle, decode_rle

__all__ = ["AnnotatedImage", "Instance"]


@dataclass(frozen=True)
class Instance:
    """A mask and what is known of it.

    Attributes:
        mask: See `encode_rle`.
        score: The IoU with the truth that the model expects, 1 where nobody said.
        category: The name of what it shows.
        prompt: What was asked with, as `Prompt.record` has it.
    """

    mask: Rle
    score: float = 1.0
    category: str = "object"
    prompt: dict[str, Any] | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image's file, its height and width, and the instances in it."""

    path: Path
    size: tuple[int, int]
    instances: list[Instance]

    def masks(self) -> list[Mask]:
        """Return the instances' masks, H x W each."""
        return [decode_rle(instance.mask) for instance in self.instances]


def score_of(entry: Mapping[str, Any]) -> float:
    score = entry.get("score")
    return 1.0 if score is None else float(score)


def category_index(category: str, names: Sequence[str]) -> int:
    if category not in names:
        raise UnknownNameError.near("category", category, names)
    return names.index(category)


def category_names(images: Iterable[AnnotatedImage]) -> list[str]:
    return sorted({instance.category for image in images for instance in image.instances})


def relative_path(folder: Path | None, path: Path) -> str:
    """Return a path as a file in `folder` names it."""
    try:
        return Path(os.path.relpath(path, folder or Path())).as_posix()
    except ValueError:  # on another of Windows' drives
        return path.resolve().as_posix()


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Make what is wrong with a file's content an error of ours."""
    try:
        yield
    except InvalidInputError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise InvalidInputError(f"this is no {what} that can be read ({e!r}): check where it comes from.") from e
