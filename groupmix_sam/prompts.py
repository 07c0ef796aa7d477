"""What to segment: points and boxes, and the files that people keep them in."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError

__all__ = [
    "COLUMNS",
    "EVERY",
    "LISTS",
    "Prompt",
    "as_box",
    "as_points",
    "as_prompt",
    "check_boxes",
    "check_columns",
    "check_points",
    "decoder_prompts",
    "group_prompts",
    "is_ambiguous",
    "parse_prompts",
    "read_prompts",
    "read_shared_prompts",
    "stack_prompts",
]


def as_points(points: Any, labels: Any, size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return N x 2 points in pixels, x before y, and N labels, 1 for foreground and 0 for background.

    Args:
        points: N pairs of x and y.
        labels: N labels, or None if all are foreground.
        size: The image's height and width.
    """
    coords = _numbers(points, "points")
    if coords.ndim != 2 or coords.shape[1] != 2 or not len(coords):
        raise InvalidInputError(f"the points have shape {coords.shape}: give N x 2, each x and y in pixels.")
    check_points(coords, size)
    kinds = np.ones(len(coords)) if labels is None else _numbers(labels, "labels")
    if kinds.shape != (len(coords),) or not np.isin(kinds, (0, 1)).all():
        raise InvalidInputError(
            f"the labels are {kinds.tolist()} for {len(coords)} points: give one each, 1 foreground or 0 background."
        )
    return coords, kinds.astype(np.int64)


def as_box(box: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return a box as left, top, right, bottom in pixels.

    Args:
        box: Those four numbers.
        size: The image's height and width.
    """
    coords = _numbers(box, "box")
    if coords.shape != (4,):
        raise InvalidInputError(f"the box has shape {coords.shape}: give four numbers, left, top, right, bottom in pixels.")
    check_boxes(coords[None], size)
    return coords


def check_points(points: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Raise InvalidInputError if one of N x 2 points is outside an image of that height and width."""
    height, width = size
    outside = (points < 0).any(1) | (points[:, 0] >= width) | (points[:, 1] >= height)
    if outside.any():
        x, y = points[outside][0]
        raise InvalidInputError(
            f"the point ({x:g}, {y:g}) is outside the image of {width} x {height} pixels: x comes before y."
        )


def check_boxes(boxes: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Raise InvalidInputError if one of N x 4 boxes has no area, or none of it in an image of that height and width."""
    left, top, right, bottom = boxes.T
    empty = (right <= left) | (bottom <= top)
    if empty.any():
        raise InvalidInputError(
            f"the box {boxes[empty][0].tolist()} is reversed or has no area: give left < right and top < bottom, in pixels."
        )
    height, width = size
    outside = (right <= 0) | (bottom <= 0) | (left >= width) | (top >= height)
    if outside.any():
        raise InvalidInputError(f"the box {boxes[outside][0].tolist()} is outside the image of {width} x {height} pixels.")


def _numbers(values: Any, what: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as e:
        raise InvalidInputError(f"the {what} are {values!r}: give numbers, in pixels.") from e
    if not np.isfinite(array).all():
        raise InvalidInputError(f"the {what} hold a number that is not finite: {array.tolist()}.")
    return array


# The name of prompts that are for every image.
EVERY = ""
# Of a CSV.
COLUMNS = ("image", "x", "y", "left", "top", "right", "bottom", "category")
# Of JSON and Parquet beside those.
LISTS = ("points", "labels", "box")


@dataclass(frozen=True)
class Prompt:
    """What to segment: points, a box, or both, in the image's pixels.

    Attributes:
        points: N x 2, x before y.
        labels: N, 1 for foreground and 0 for background; by default all foreground.
        box: x0, y0, x1, y1.
        category: The name of what the prompt shows, if known.
    """

    points: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    box: list[float] | None = None
    category: str | None = None

    def __post_init__(self) -> None:
        if not self.labels:
            object.__setattr__(self, "labels", [1] * len(self.points))

    @property
    def kind(self) -> str:
        """What it is: "box" if it has one, "point" if it is a single point, else "points"."""
        return "box" if self.box is not None else "point" if self.ambiguous else "points"

    @property
    def ambiguous(self) -> bool:
        """Whether the best of three masks is taken, see `is_ambiguous`."""
        return bool(is_ambiguous(len(self.points), self.box is not None))

    def arrays(self) -> dict[str, Any]:
        """Return the prompt as `SamPredictor.predict` takes it: point_coords, point_labels and box, each an array or None."""
        return {
            "point_coords": np.array(self.points, dtype=np.float64) if self.points else None,
            "point_labels": np.array(self.labels) if self.points else None,
            "box": None if self.box is None else np.array(self.box, dtype=np.float64),
        }

    def record(self) -> dict[str, Any]:
        """Return what is not empty, for JSON; `as_prompt` reads it back."""
        return {key: value for key, value in asdict(self).items() if value}

    def check(self, size: tuple[int, int]) -> None:
        """Raise InvalidInputError if the prompt cannot be used on an image of that height and width."""
        if self.points:
            as_points(self.points, self.labels, size)
        if self.box is not None:
            as_box(self.box, size)


def is_ambiguous(points: Any, boxed: bool) -> Any:
    """Return whether the best of three masks is taken for a number of points, or for an array of numbers.

    This is the one rule by which the package takes a single mask. One point without a box may mean a part or the whole, so the
    model predicts three masks, and the one of the highest predicted IoU is taken. Any other prompt means one instance, and the
    model predicts one mask.
    """
    return (points == 1) & (not boxed)


def stack_prompts(
    prompts: Sequence[Prompt],
) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None, NDArray[np.float64] | None]:
    """Return P prompts as `Predictor.predict_prompts` and `predict_single_mask` take them: all at once.

    Args:
        prompts: All with a box or all without.

    Returns:
        point_coords, P x N x 2, and point_labels, P x N, or None if there are no points; boxes, P x 4, or None. Prompts with
        fewer than N points are padded with points of label -1, which the decoder ignores.

    Raises:
        InvalidInputError: there is no prompt, or only some have a box.
    """
    if not prompts:
        raise InvalidInputError("nothing says what to segment: give a prompt.")
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    if len(boxes) not in (0, len(prompts)):
        raise InvalidInputError(f"{len(boxes)} of {len(prompts)} prompts have a box: give a box to all of them or to none.")
    most = max(len(prompt.points) for prompt in prompts)
    coords = np.array([prompt.points + [[0.0, 0.0]] * (most - len(prompt.points)) for prompt in prompts], dtype=np.float64)
    labels = np.array([prompt.labels + [-1] * (most - len(prompt.labels)) for prompt in prompts], dtype=np.int64)
    return *((coords, labels) if most else (None, None)), np.array(boxes, dtype=np.float64) if boxes else None


def read_shared_prompts(path: str | PathLike[str]) -> list[Prompt]:
    """Read the prompts of a JSON file that are for every image, such as every frame of a camera; see `read_prompts`.

    Raises:
        InvalidInputError: it cannot be read, holds no prompts for every image, or only some of them have a box.
    """
    prompts = read_prompts(path).get(EVERY, [])
    if not prompts or len({prompt.box is None for prompt in prompts}) > 1:
        raise InvalidInputError(f'{path} holds no prompts for all frames: write {{"boxes": [[left, top, right, bottom]]}}.')
    return prompts


def read_prompts(path: str | PathLike[str]) -> dict[str, list[Prompt]]:
    """Read the prompts of a CSV or JSON file, in pixels, by the images' names.

    A CSV has one line per prompt and the columns `image`, then `x` and `y`, or `left`, `top`, `right` and `bottom`, or all, and
    `category` if it is known. JSON is a list of objects with the same keys, or with `points` (pairs of x and y), `labels` (1
    foreground, 0 background) and `box`. Or it is one object, for every image: `boxes`, P x 4, or `points`, P x N x 2, with
    `labels`, P x N, or both, and `categories`, P; those stand under `EVERY`.

    Raises:
        InvalidInputError: it is neither, a column is not known, or a prompt is not whole.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as e:  # a ValueError of a name that no file can have
        raise InvalidInputError(f"the prompts {path} cannot be read ({e}): check the path.") from e
    return parse_prompts(data, str(path))


def parse_prompts(data: bytes, path: str) -> dict[str, list[Prompt]]:
    """Return the prompts in a file's bytes as `read_prompts` does; the name's ending says whether they are JSON."""
    is_json, columns = path.lower().endswith(".json"), None
    try:
        text = data.decode("utf-8-sig")
        if is_json:
            content = json.loads(text)
        else:
            table = csv.DictReader(io.StringIO(text, newline=""))
            content, columns = list(table), table.fieldnames or ()
    except (ValueError, RecursionError, csv.Error) as e:
        raise InvalidInputError(f"the prompts {path} cannot be read ({e}): give a CSV or JSON file in UTF-8.") from e
    if isinstance(content, dict):
        return {EVERY: [prompt for _, prompt in _rows(_for_every_image(content, path), path)]}
    if columns is not None:
        check_columns(f"{path} has columns", columns, COLUMNS)
    return group_prompts(content, path)


def group_prompts(entries: Any, path: str) -> dict[str, list[Prompt]]:
    """Return the prompts of a table's rows by their images' names.

    Raises:
        InvalidInputError: there is no row, a key is not known, or a prompt is not whole.
    """
    prompts: dict[str, list[Prompt]] = {}
    for name, prompt in _rows(entries, path):
        prompts.setdefault(name, []).append(prompt)
    return prompts


def _rows(entries: Any, path: str) -> Iterator[tuple[str, Prompt]]:
    """Yield each row's image and prompt."""
    if not isinstance(entries, list) or not entries:
        raise InvalidInputError(f"{path} has no prompts: give one a row, with image and x,y or left,top,right,bottom.")
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, dict):
            check_columns(f"prompt {number} of {path} has keys", [key for key in entry if key is not None], (*COLUMNS, *LISTS))
        try:
            if None in entry:  # where DictReader puts cells that have no column
                raise ValueError("more cells than columns")
            name = entry["image"]
            if not isinstance(name, str) or not name.strip():
                raise KeyError("image")
            yield name.replace("\\", "/"), as_prompt(entry)  # as name_images names them, on Windows too
        except (KeyError, OverflowError, TypeError, ValueError) as e:
            raise InvalidInputError(
                f"prompt {number} of {path} is {entry!r}: give image, and x and y or left, top, right and bottom."
            ) from e


def check_columns(what: str, columns: Iterable[str], known: Sequence[str]) -> None:
    """Raise InvalidInputError if a column is not known: its meaning would be lost in silence."""
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise InvalidInputError(f"{what} that are unknown, {', '.join(map(repr, unknown))}: use {', '.join(known)}.")


def _for_every_image(content: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """Return columns, `boxes`, `points`, `labels` and `categories`, as a list of rows."""
    keys = {"boxes": "box", "points": "points", "labels": "labels", "categories": "category"}
    check_columns(f"{path} has keys", content, list(keys))
    columns = {keys[name]: values for name, values in content.items() if values is not None}
    if not {"box", "points"} & columns.keys():
        raise InvalidInputError(f'{path} has neither "boxes" nor "points": write {{"boxes": [[left, top, right, bottom]]}}.')
    try:
        rows = list(zip(*columns.values(), strict=True))
    except (TypeError, ValueError) as e:
        raise InvalidInputError(f"{path} has lists of different lengths ({e}): give each one value a prompt.") from e
    return [{"image": "*", **dict(zip(columns, row, strict=True))} for row in rows]


def as_prompt(entry: Mapping[str, Any]) -> Prompt:
    """Return the prompt of a row, by `COLUMNS`, by `LISTS` or both; None and empty cells are left out.

    Raises:
        KeyError: it has neither a point nor a box.
        ValueError: a value is no number, a box is not of four, or labels are more or fewer than points.
        OverflowError, TypeError: likewise.
    """
    given = {key: value for key, value in entry.items() if value is not None and value != ""}
    points = [[float(x), float(y)] for x, y in given.get("points", [])]
    if "x" in given or "y" in given:
        points.append([float(given["x"]), float(given["y"])])
    box = given.get("box")
    sides = ("left", "top", "right", "bottom")
    if any(side in given for side in sides):
        box = [given[side] for side in sides]
    if not points and not box:
        raise KeyError("x")
    labels = [int(label) for label in given.get("labels", [1] * len(points))]
    if len(labels) != len(points):
        raise ValueError("labels")
    if box is not None and len(box) != 4:
        raise ValueError("box")
    category = given.get("category")
    return Prompt(points, labels, [float(v) for v in box] if box else None, str(category) if category else None)


def decoder_prompts(
    point_coords: NDArray[Any] | None,
    point_labels: NDArray[Any] | None,
    boxes: NDArray[Any] | None,
    size: tuple[int, int],
    resized: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return P x N x 2 points in the resized image's pixels and P x N labels, as the decoder takes them."""
    points: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    if point_coords is not None:
        coords: NDArray[Any] = np.asarray(point_coords, dtype=np.float64)
        if coords.ndim != 3 or coords.shape[2] != 2 or not coords.size:
            raise InvalidInputError(f"the points have shape {coords.shape[1:]} for each prompt: give N x 2, x before y.")
        if point_labels is None or np.shape(point_labels) != coords.shape[:2]:
            raise InvalidInputError(f"there are {coords.shape[1]} points a prompt: give as many labels, 1 or 0.")
        kinds = np.asarray(point_labels)
        if not np.isin(kinds, (-1, 0, 1)).all():
            raise InvalidInputError(f"the labels are {kinds.tolist()}: use 1 for foreground and 0 for background.")
        check_points(coords[kinds >= 0], size)
        points.append(coords)
        labels.append(kinds)
    elif point_labels is not None:
        raise InvalidInputError("there are labels without points: give point_coords too.")
    if boxes is not None:
        corners = np.asarray(boxes, dtype=np.float64)
        if corners.ndim != 2 or corners.shape[1] != 4 or not len(corners):
            raise InvalidInputError(f"the boxes have shape {corners.shape}: give P x 4, left, top, right, bottom.")
        check_boxes(corners, size)
        points.append(corners.reshape(-1, 2, 2))
        labels.append(np.tile([2, 3], (len(corners), 1)))
    if not points:
        raise InvalidInputError("nothing says what to segment: give points, a box or an earlier mask.")
    if len({len(part) for part in points}) > 1:
        raise InvalidInputError(
            f"there are points for {len(points[0])} prompts and {len(points[1])} boxes: give as many of each."
        )
    coords = np.concatenate(points, axis=1) * np.divide(resized, size)[::-1]  # x before y
    if not np.isfinite(coords).all():
        raise InvalidInputError("a prompt holds a number that is not finite: check the points and boxes.")
    kinds = np.concatenate(labels, axis=1)
    if boxes is None:  # segment-anything's padding
        coords = np.pad(coords, ((0, 0), (0, 1), (0, 0)))
        kinds = np.pad(kinds, ((0, 0), (0, 1)), constant_values=-1)
    return coords.astype(np.float32), kinds.astype(np.float32)
