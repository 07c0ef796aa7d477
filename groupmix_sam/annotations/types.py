"""What every annotation format holds: images and the instances in them."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError, UnknownNameError
from ..masks import Mask, check_mask, mask_window
from ..prompts import LISTS, Prompt, as_prompt

__all__ = ["AnnotatedImage", "Instance"]


@dataclass(init=False)
class Instance:
    """A mask with its score, category and prompt.

    It stores the bits inside the bounding box, so that hundreds of instances of a large photo fit into memory: one full mask of
    24 megapixels has 24 MB. `mask` unpacks them into a new array.

    Args:
        mask: H x W of bool.
        score: The predicted IoU; 1 where there is none.
        category: The name of what the mask shows.
        prompt: The prompt that the mask answers.
        iscrowd: Whether it is a crowd of instances that nobody separated, COCO's `iscrowd`.

    Attributes:
        size: The image's height and width.
        box: The bounding box, x0, y0, x1, y1, in pixels; zeros of an empty mask.
        area: The number of pixels.

    Raises:
        InvalidInputError: the mask is no H x W array of bool.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    area: int
    score: float
    category: str
    prompt: Prompt | None
    iscrowd: bool
    _bits: bytes = field(repr=False)

    def __init__(
        self,
        mask: Mask,
        score: float = 1.0,
        category: str = "object",
        prompt: Prompt | None = None,
        iscrowd: bool = False,
    ) -> None:
        check_mask(mask)
        rows, columns = mask_window(mask) or (slice(0, 0), slice(0, 0))
        crop = mask[rows, columns]
        self.size = mask.shape[0], mask.shape[1]
        self.box = columns.start, rows.start, columns.stop, rows.stop
        self.area = int(np.count_nonzero(crop))
        self.score, self.category, self.prompt, self.iscrowd = score, category, prompt, iscrowd
        self._bits = np.packbits(crop).tobytes()

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the bounding box."""
        x0, y0, x1, y1 = self.box
        return slice(y0, y1), slice(x0, x1)

    @property
    def crop(self) -> Mask:
        """The mask inside its bounding box, h x w of bool."""
        x0, y0, x1, y1 = self.box
        shape = y1 - y0, x1 - x0
        bits = np.unpackbits(np.frombuffer(self._bits, dtype=np.uint8), count=shape[0] * shape[1])
        return bits.view(bool).reshape(shape)

    @property
    def mask(self) -> Mask:
        """The mask, H x W of bool."""
        mask = np.zeros(self.size, dtype=bool)
        mask[self.window] = self.crop
        return mask


@dataclass(frozen=True)
class AnnotatedImage:
    """An image's file, its height and width, and the instances in it.

    Raises:
        InvalidInputError: a mask is of another size.
    """

    path: Path
    size: tuple[int, int]
    instances: list[Instance]

    def __post_init__(self) -> None:
        for number, instance in enumerate(self.instances, 1):
            if instance.size != tuple(self.size):
                raise InvalidInputError(
                    f"the mask of instance {number} of {self.path} has height and width {instance.size}, the image has "
                    f"{self.size}: give masks of the image's size."
                )

    def masks(self) -> list[Mask]:
        """Return the instances' masks, H x W of bool each."""
        return [instance.mask for instance in self.instances]


def score_of(entry: Mapping[str, Any]) -> float:
    score = entry.get("score")
    return 1.0 if score is None else float(score)


def prompt_of(entry: Mapping[str, Any]) -> Prompt | None:
    """Return the prompt that `Prompt.record` wrote; None where there is none, or one of another program's."""
    prompt = entry.get("prompt")
    if not isinstance(prompt, Mapping) or not prompt or not set(prompt) <= {*LISTS, "category"}:
        return None
    return as_prompt(prompt)


def prompt_record(instance: Instance) -> dict[str, Any]:
    """Return what a file says of an instance's prompt: nothing if there is none."""
    return {} if instance.prompt is None else {"prompt": instance.prompt.record()}


def category_index(category: str, names: Sequence[str]) -> int:
    if category not in names:
        raise UnknownNameError.near("category", category, names)
    return names.index(category)


def category_names(images: Iterable[AnnotatedImage]) -> list[str]:
    return sorted({instance.category for image in images for instance in image.instances})


def relative_path(folder: Path | None, path: Path) -> str:
    """Return a path relative to a folder, with slashes."""
    try:
        return Path(os.path.relpath(path, folder or Path())).as_posix()
    except ValueError:  # on another of Windows' drives
        return path.resolve().as_posix()


def image_path(folder: Path | None, name: str) -> Path:
    """Return the path that a file in `folder` names, which may have been written on Windows."""
    return (folder or Path()) / name.replace("\\", "/")


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn errors in a file's content into InvalidInputError."""
    try:
        yield
    except InvalidInputError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise InvalidInputError(f"this {what} cannot be read ({e!r}): check where it comes from.") from e
