"""Results of evaluations on disk."""

import json
import math
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..files import write_beside
from .dataset import Row, decode

__all__ = ["Result", "load_result"]

FORMAT = 1
# The numbers that each row of a kind of evaluation needs for a summary.
FIGURES = ("area", "iou", "boundary_iou", "predicted_iou", "box_baseline_iou")
NUMBERS = {"labelled": FIGURES, "reference": FIGURES, "detections": ("score", "predicted_iou")}


@dataclass(frozen=True)
class Result:
    """An evaluation: what was evaluated and how, and a row per mask.

    Attributes:
        kind: "labelled", "reference" or "detections".
        protocol: `Protocol.record()`.
        model: `Model.record()`.
        data: The sources of images and truth, with their hashes.
        versions: Of Python and the packages that can change a figure.
        rows: In the images' order; `image`, `id`, `prompt`, `given`, `iou`, `boundary_iou`, `predicted_iou`,
            `box_baseline_iou`, and the masks `mask` and `truth` as COCO's RLE `counts` of height and width `size`.
    """

    kind: str
    protocol: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result as JSON."""
        _write(Path(path), json.dumps({"format": FORMAT, **asdict(self)}))


def load_result(path: str | PathLike[str]) -> Result:
    """Read a result.

    Raises:
        InvalidInputError: it does not exist or is no result.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        result = Result(**content)
        _check_values(result)
        return result
    except (OSError, OverflowError, RecursionError, ValueError, AttributeError, KeyError, TypeError) as e:
        raise InvalidInputError(f"{path} is no result of `groupmix-sam evaluate` ({e}): give a JSON file of it.") from e


def _check_values(result: Result) -> None:
    """Raise ValueError, KeyError or TypeError for a value that a summary could not use."""
    reference = result.data["reference"] if result.kind == "reference" else {"name": ""}
    names = [result.protocol["name"], result.model["name"], reference["name"], *result.protocol["prompts"].values()]
    digest = result.model["sha256"]
    if not all(isinstance(name, str) for name in names) or not isinstance(digest, str | None) or not result.rows:
        raise ValueError("protocol, model, data or rows")
    for row in result.rows:
        values = [row[name] for name in NUMBERS[result.kind]]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise ValueError(f"values {values} in a row")
        if not all(isinstance(row[name], str) for name in ("image", "prompt", "mask")):
            raise ValueError("a row's image, prompt or mask")
        decode(row, "mask")
        hash(row["id"])


def _write(path: Path, text: str) -> None:
    write_beside(path, lambda part: part.write_text(text, encoding="utf-8"))
