"""Pictures without labels: how far a model's masks are a reference's, the protocol of the paper's Table 3."""

import csv
import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..images import as_box, as_points, read_image
from ..pictures import SUFFIXES
from ..weights import sha256
from .labelled import Row, measure
from .metrics import tight_box
from .models import Model
from .protocol import Prompt, Protocol, ask

__all__ = ["Agreement", "read_prompts"]


class Agreement:
    """A folder of pictures, prompts, and the model whose masks are taken for the truth.

    The mask is chosen alike for both models: as the protocol says, or of a box the single one, else the best of three. Where an
    oracle chooses, the reference's is the best of three by its own word.

    Args:
        pictures: The folder.
        protocol: How to evaluate; its prompts do not matter here.
        reference: The model that is taken for the truth.
        prompts: A CSV or JSON file, see `read_prompts`; or n, for a grid of n x n points over each picture.
        confidence: Of a grid, points are dropped where the reference's predicted IoU is lower.
        limit: Take the first pictures only.

    Raises:
        InvalidInputError: the prompts cannot be read, or name a picture that is not there.
    """

    kind = "agreement"

    def __init__(
        self,
        pictures: str | PathLike[str],
        protocol: Protocol,
        reference: Model,
        prompts: str | PathLike[str] | int,
        confidence: float = 0.88,
        limit: int | None = None,
    ) -> None:
        self.folder, self.protocol, self.reference = Path(pictures), protocol, reference
        self.grid = prompts if isinstance(prompts, int) else None
        self.confidence = confidence
        if self.grid is not None:
            if self.grid < 1:
                raise InvalidInputError(f"the grid is {self.grid}: give 1 or more points a side.")
            found = (path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
            names = sorted(path.relative_to(self.folder).as_posix() for path in found)
            if not names:
                raise InvalidInputError(f"{self.folder} has no picture in it: {', '.join(sorted(SUFFIXES))} are looked for.")
            self._record: dict[str, Any] = {"grid": self.grid, "confidence": confidence}
        else:
            file = Path(prompts)  # type: ignore[arg-type]  # an int is a grid
            self.prompts = read_prompts(file)
            names = list(self.prompts)
            self._record = {"prompts": str(file), "sha256": sha256(file)}
            for name in names:
                if not (self.folder / name).is_file():
                    raise InvalidInputError(f"{self.folder / name}, which {file} names, is not there: give its folder.")
        self.names = names[:limit]

    def record(self) -> dict[str, Any]:
        """Return what a result says of the data and of the reference."""
        reference = self.reference.record()
        return {**self._record, "folder": str(self.folder), "pictures": len(self.names), "reference": reference}

    def pictures(self) -> list[str]:
        """Return the pictures' names: of the grid sorted, else in the prompts' order."""
        return self.names

    def measure(self, predictor: Any, picture: str) -> list[Row]:
        """Return a row for every prompt of a picture that the reference has a mask for."""
        image = read_image(self.folder / picture)
        size = (image.shape[0], image.shape[1])
        prompts = self.prompts[picture] if self.grid is None else _grid(size, self.grid)
        for prompt in prompts:
            try:
                _check(prompt, size)
            except InvalidInputError as e:
                raise InvalidInputError(f"{picture}: {e}") from e
        self.reference.predictor.set_image(image)
        predictor.set_image(image)
        rows = []
        for i, prompt in enumerate(prompts):
            choose = self.protocol.choice(prompt.kind)
            truth = ask(self.reference.predictor, prompt, "best-of-3" if choose == "oracle" else choose)
            if self.grid is not None and truth.predicted < self.confidence:
                continue
            area = int(np.count_nonzero(truth.mask))
            if area < max(self.protocol.least_area, 1):
                continue
            box = prompt.box or tight_box(truth.mask)
            answer = ask(predictor, prompt, choose, truth.mask)
            row = {"picture": picture, "id": i, "area": float(area)}
            rows.append(row | measure(prompt.kind, prompt, answer, truth.mask, box))
        return rows


def read_prompts(path: str | PathLike[str]) -> dict[str, list[Prompt]]:
    """Read prompts, in pixels, for pictures by name.

    A CSV has a line a prompt and the columns `picture`, then `x` and `y`, or `left`, `top`, `right` and `bottom`. JSON is a
    list of objects with the same keys, or with `points` (pairs of x and y), `labels` (1 foreground, 0 background) and `box`.

    Raises:
        InvalidInputError: it is neither, or a prompt is not whole.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".json":
            entries = json.loads(path.read_text(encoding="utf-8"))
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                entries = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as e:
        raise InvalidInputError(f"the prompts {path} cannot be read ({e}): give a CSV or a JSON file.") from e
    if not isinstance(entries, list) or not entries:
        raise InvalidInputError(f"{path} holds no list of prompts: see the docs of read_prompts.")
    prompts: dict[str, list[Prompt]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            prompts.setdefault(str(entry["picture"]), []).append(_prompt(entry))
        except (KeyError, TypeError, ValueError) as e:
            raise InvalidInputError(
                f"prompt {number} of {path} is {entry!r}: give picture, and x and y or left, top, right and bottom."
            ) from e
    return prompts


def _prompt(entry: dict[str, Any]) -> Prompt:
    points = [[float(x), float(y)] for x, y in entry.get("points", [])]
    if entry.get("x") not in (None, ""):
        points.append([float(entry["x"]), float(entry["y"])])
    box = entry.get("box")
    if entry.get("left") not in (None, ""):
        box = [entry[side] for side in ("left", "top", "right", "bottom")]
    if not points and not box:
        raise KeyError("x")
    labels = [int(label) for label in entry.get("labels", [1] * len(points))]
    if len(labels) != len(points):
        raise ValueError("labels")
    return Prompt(points, labels, [float(v) for v in box] if box else None)


def _check(prompt: Prompt, size: tuple[int, int]) -> None:
    if prompt.points:
        as_points(prompt.points, prompt.labels, size)
    if prompt.box is not None:
        as_box(prompt.box, size)


def _grid(size: tuple[int, int], side: int) -> list[Prompt]:
    """Return points at the middles of side x side equal cells, row by row."""
    ys, xs = ((np.arange(side) + 0.5) * length / side for length in size)
    return [Prompt([[float(x), float(y)]], [1]) for y in ys for x in xs]
