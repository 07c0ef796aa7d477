"""Running an evaluation so that it can be killed and shared out; results on disk."""

import contextlib
import json
import math
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from .. import __version__
from ..errors import InvalidInputError, SaveError
from ..runtimes import keep_memory
from ..weights import make_folder, write_beside
from .labelled import Row, decode
from .models import Model

__all__ = ["Result", "Task", "evaluate", "load_result"]

FORMAT = 1
# What every row of a kind of evaluation has to be summed up.
FIGURES = ("area", "iou", "boundary_iou", "predicted_iou", "filled_box_iou")
NUMBERS = {"labelled": FIGURES, "agreement": FIGURES, "detections": ("score", "predicted_iou")}


class Task(Protocol):
    """What `Labelled` and `Agreement` have in common."""

    kind: str
    protocol: Any

    def record(self) -> dict[str, Any]: ...
    def pictures(self) -> list[str]: ...
    def measure(self, predictor: Any, picture: str) -> list[Row]: ...


@dataclass(frozen=True)
class Result:
    """An evaluation: what was evaluated and how, and a row for every mask.

    Attributes:
        kind: "labelled" or "agreement".
        protocol: `Protocol.record()`.
        model: `Model.record()`.
        data: Where pictures and truth came from, with their hashes.
        versions: Of Python and of the packages that can change a figure.
        rows: In the pictures' order; `picture`, `id`, `prompt`, `given`, `iou`, `boundary_iou`, `predicted_iou`,
            `filled_box_iou`, and the masks `mask` and `truth` as COCO's RLE `counts` of height and width `size`.
    """

    kind: str
    protocol: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row]

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, beside and then renamed."""
        _write(Path(path), json.dumps({"format": FORMAT, **asdict(self)}))


def load_result(path: str | PathLike[str]) -> Result:
    """Read a result back.

    Raises:
        InvalidInputError: it is not there or no result.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        result = Result(**content)
        _check_values(result)
        return result
    except (OSError, OverflowError, RecursionError, ValueError, AttributeError, KeyError, TypeError) as e:
        raise InvalidInputError(f"{path} is no result of `groupmix-sam evaluate` ({e}): make one with it.") from e


def evaluate(task: Task, model: Model, output: str | PathLike[str]) -> Result | None:
    """Evaluate a model and write the result; go on where a run that was killed stopped, and take a finished result as it is.

    After each picture its rows are appended to a file in `<output>.parts`, a line a picture. Where torchrun or `accelerate
    launch` started several processes, each takes every n-th of the pictures; the last to finish puts the parts together, in the
    pictures' order. Pictures and prompts are taken one at a time, so that no figure depends on how the work was shared out.

    Args:
        task: What to evaluate on.
        model: The model; its predictor needs only `SamPredictor`'s `set_image` and `predict`.
        output: The JSON file to write.

    Returns:
        The result, or None if other processes have still to finish.

    Raises:
        InvalidInputError: `output` or its parts are of another evaluation, or damaged.
        SaveError: they cannot be written; what is done is kept.
    """
    output = Path(output)
    header = {"kind": task.kind, "protocol": task.protocol.record(), "model": model.record(), "data": task.record()}
    header = json.loads(json.dumps(header))  # so that it compares equal to what is read back
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if output.exists():
        result = load_result(output)
        _check_same(header, asdict(result), output)
        if not rank:
            print(f"finished before, taken from {output}", file=sys.stderr)
        return result
    parts = output.with_name(f"{output.name}.parts")
    make_folder(parts)
    pictures = task.pictures()
    done = _read_parts(parts, header)
    mine = [picture for picture in pictures[rank::processes] if picture not in done]
    part = parts / f"{rank}.jsonl"
    _drop_cut_line(part)
    if not part.exists():
        _append(part, header)
    keep_memory()
    for picture in tqdm(mine, desc=model.name, unit="picture", disable=True if rank else None):
        _append(part, {"picture": picture, "rows": task.measure(model.predictor, picture)})
    try:
        done = _read_parts(parts, header)
    except FileNotFoundError:  # another process finished at the same time and has put the parts together
        return load_result(output)
    if any(picture not in done for picture in pictures):
        return None
    result = Result(**header, versions=_versions(), rows=[row for picture in pictures for row in done[picture]])
    if not result.rows:
        raise InvalidInputError(f"nothing in {header['data']['folder']} counts: see the protocol's crowds and least area.")
    result.save(output)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(parts.rename(output.with_name(f"{output.name}.done-{rank}")))
    return result


def _check_values(result: Result) -> None:
    """Raise ValueError, KeyError or TypeError for a value that a summary could not use."""
    reference = result.data["reference"] if result.kind == "agreement" else {"name": ""}
    names = [result.protocol["name"], result.model["name"], reference["name"], *result.protocol["prompts"].values()]
    digest = result.model["sha256"]
    if not all(isinstance(name, str) for name in names) or not isinstance(digest, str | None) or not result.rows:
        raise ValueError("protocol, model, data or rows")
    for row in result.rows:
        values = [row[name] for name in NUMBERS[result.kind]]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise ValueError(f"values {values} in a row")
        if not all(isinstance(row[name], str) for name in ("picture", "prompt", "mask")):
            raise ValueError("a row's picture, prompt or mask")
        decode(row, "mask")
        hash(row["id"])


def _read_parts(parts: Path, header: dict[str, Any]) -> dict[str, list[Row]]:
    """Return the rows of the pictures that are done; a line that was cut by a kill does not count."""
    done: dict[str, list[Row]] = {}
    for part in sorted(parts.glob("*.jsonl")):
        content = part.read_bytes()
        try:
            first, *lines = content.decode().split("\n")
            if lines:
                _check_same(header, dict(json.loads(first)), parts)
            for entry in map(json.loads, lines[:-1]):
                done[entry["picture"]] = list(entry["rows"])
        except (KeyError, TypeError, ValueError) as e:
            if isinstance(e, InvalidInputError):
                raise
            raise InvalidInputError(f"{part} is damaged ({e!r}): delete it, and its pictures are done again.") from e
    return done


def _append(part: Path, entry: dict[str, Any]) -> None:
    """Write a line. Opened for each, so that a disk that is full is told of here and not when the file is closed."""
    try:
        with part.open("a", encoding="utf-8") as file:
            print(json.dumps(entry), file=file)
    except OSError as e:
        raise SaveError(f"{part} cannot be written ({e}): free some space and start again; what is done is kept.") from e


def _drop_cut_line(part: Path) -> None:
    if part.exists():
        content = part.read_bytes()
        part.write_bytes(content[: content.rfind(b"\n") + 1])
        if not part.stat().st_size:
            part.unlink()


def _check_same(header: dict[str, Any], found: dict[str, Any], path: Path) -> None:
    for key, value in header.items():
        there = found.get(key)
        if there != value:
            if isinstance(value, dict) and isinstance(there, dict):
                differs = [part for part in value | there if value.get(part) != there.get(part)]
                key, there, value = f"{key}'s {differs[0]}", there.get(differs[0]), value.get(differs[0])
            raise InvalidInputError(
                f"{path} is of another evaluation, its {key} is {there!r} and not {value!r}: give another output, or delete it."
            )


def _versions() -> dict[str, str]:
    versions = {"groupmix-sam": __version__, "python": platform.python_version()}
    packages = (
        "torch",
        "torchvision",
        "timm",
        "segment-anything",
        "segment-anything-py",
        "pycocotools",
        "faster-coco-eval",
        "numpy",
        "scipy",
        "pillow",
    )
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = installed_version(package)
    return versions


def _write(path: Path, text: str) -> None:
    write_beside(path, lambda part: part.write_text(text, encoding="utf-8"))
