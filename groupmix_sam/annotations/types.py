"""What every annotation format holds: instances and the image that they are in."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, UnknownNameError
from ..masks import Mask, Rle, decode_rle

__all__ = ["AnnotatedPicture", "Thing"]


@dataclass(frozen=True)
class Thing:
    """A mask and what is known of it.

    Attributes:
        mask: See `encode_rle`.
        score: The IoU with the truth that the model expects, 1 where nobody said.
        category: The name of what it shows.
        prompt: What was asked with, as `Prompt.record` has it.
    """

    mask: Rle
    score: float = 1.0
    category: str = "thing"
    prompt: dict[str, Any] | None = None


@dataclass(frozen=True)
class AnnotatedPicture:
    """A picture's file, its height and width, and the things in it."""

    path: Path
    size: tuple[int, int]
    things: list[Thing]

    def masks(self) -> list[Mask]:
        """Return the things' masks, H x W each."""
        return [decode_rle(thing.mask) for thing in self.things]


def _score(entry: Mapping[str, Any]) -> float:
    score = entry.get("score")
    return 1.0 if score is None else float(score)


def _place(category: str, names: Sequence[str]) -> int:
    if category not in names:
        raise UnknownNameError.near("category", category, names)
    return names.index(category)


def _categories(pictures: Iterable[AnnotatedPicture]) -> list[str]:
    return sorted({thing.category for picture in pictures for thing in picture.things})


def _from(folder: Path | None, path: Path) -> str:
    """Return a path as a file in `folder` names it."""
    try:
        return Path(os.path.relpath(path, folder or Path())).as_posix()
    except ValueError:  # on another of Windows' drives
        return path.resolve().as_posix()


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Make what is wrong with a file's content an error of ours."""
    try:
        yield
    except InvalidInputError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise InvalidInputError(f"this is no {what} that can be read ({e!r}): check where it comes from.") from e
