"""Running an evaluation so that it can be resumed after a kill and shared by processes."""

import contextlib
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from .. import __version__
from ..errors import InvalidInputError, SaveError
from ..files import make_folder
from ..inference.mask_predictor import MaskPredictor
from ..memory import keep_freed_memory
from .dataset import Row
from .models import Model
from .results import Result, load_result

__all__ = ["Task", "evaluate"]


class Task(Protocol):
    """What `LabelledDataset`, `ReferenceDataset` and `DetectionDataset` have in common."""

    kind: str
    protocol: Any

    def record(self) -> dict[str, Any]: ...
    def images(self) -> list[str]: ...
    def measure(self, predictor: MaskPredictor, image: str) -> list[Row]: ...


def evaluate(task: Task, model: Model, output: str | PathLike[str]) -> Result | None:
    """Evaluate a model and write the result; resume a killed run, and return a finished result as it is.

    After each image its rows are appended to a file in `<output>.parts`, one line per image. If torchrun or `accelerate launch`
    started several processes, each takes every n-th image, and the last to finish joins the parts in the images' order. Images
    and prompts are taken one at a time, so no figure depends on the number of processes.

    Args:
        task: What to evaluate on.
        model: The model. Without a `sha256` nothing distinguishes it from another of the same name: no earlier run is
            resumed or returned, and several processes cannot share the work.
        output: The JSON file to write.

    Returns:
        The result, or None while other processes are at work.

    Raises:
        InvalidInputError: `output` or its parts are of another evaluation, of a model without a hash, or damaged.
        SaveError: they cannot be written; finished images are kept.
    """
    output = Path(output)
    header = {"kind": task.kind, "protocol": task.protocol.record(), "model": model.record(), "data": task.record()}
    header = json.loads(json.dumps(header))  # so that it compares equal to what is read back
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    unknown = [m["name"] for m in (header["model"], header["data"].get("reference")) if m and m["sha256"] is None]
    if unknown:
        return _evaluate_unknown(task, model, output, header, unknown[0], processes)
    if output.exists():
        result = load_result(output)
        _check_same(header, asdict(result), output)
        if not rank:
            print(f"already evaluated: the result is read from {output}", file=sys.stderr)
        return result
    parts = output.with_name(f"{output.name}.parts")
    make_folder(parts)
    images = task.images()
    done = _read_parts(parts, header)
    mine = [image for image in images[rank::processes] if image not in done]
    part = parts / f"{rank}.jsonl"
    _drop_cut_line(part)
    if not part.exists():
        _append(part, header)
    keep_freed_memory()
    for image in tqdm(mine, desc=model.name, unit="image", disable=True if rank else None):
        _append(part, {"image": image, "rows": task.measure(model.predictor, image)})
    try:
        done = _read_parts(parts, header)
    except FileNotFoundError:  # another process finished at the same time and has joined the parts
        return load_result(output)
    if any(image not in done for image in images):
        return None
    result = _save(Result(**header, versions=_versions(), rows=[row for image in images for row in done[image]]), output)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(parts.rename(output.with_name(f"{output.name}.done-{rank}")))
    return result


def _evaluate_unknown(task: Task, model: Model, output: Path, header: dict[str, Any], unknown: str, processes: int) -> Result:
    """Evaluate in one go: the model or reference named `unknown` has no sha256, so nothing may be reused."""
    if output.exists():
        raise InvalidInputError(
            f"{output} is there, and {unknown} has no sha256 that says whether it is of this model: give another output, or "
            "Model a sha256."
        )
    if processes > 1:
        raise InvalidInputError(f"{unknown} has no sha256, which several processes need: give it to Model.")
    keep_freed_memory()
    images = tqdm(task.images(), desc=model.name, unit="image", disable=None)
    rows = [row for image in images for row in task.measure(model.predictor, image)]
    make_folder(output.parent)
    return _save(Result(**header, versions=_versions(), rows=rows), output)


def _save(result: Result, output: Path) -> Result:
    if not result.rows:
        raise InvalidInputError(
            f"nothing in {result.data['folder']} is evaluated: see the protocol's crowds and min_mask_area, or add labels."
        )
    result.save(output)
    return result


def _read_parts(parts: Path, header: dict[str, Any]) -> dict[str, list[Row]]:
    """Return the rows of finished images, without a line that a kill has cut."""
    done: dict[str, list[Row]] = {}
    for part in sorted(parts.glob("*.jsonl")):
        content = part.read_bytes()
        try:
            first, *lines = content.decode().split("\n")
            if lines:
                _check_same(header, dict(json.loads(first)), parts)
            for entry in map(json.loads, lines[:-1]):
                done[entry["image"]] = list(entry["rows"])
        except (KeyError, TypeError, ValueError) as e:
            if isinstance(e, InvalidInputError):
                raise
            raise InvalidInputError(f"{part} is damaged ({e!r}): delete it, and its images are evaluated again.") from e
    return done


def _append(part: Path, entry: dict[str, Any]) -> None:
    """Append a line. The file is opened for each, so that a full disk raises here and not when it is closed."""
    try:
        with part.open("a", encoding="utf-8") as file:
            print(json.dumps(entry), file=file)
    except OSError as e:
        raise SaveError(f"{part} cannot be written ({e}): free some space and start again, finished images are kept.") from e


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
                f"{path} is of another evaluation, its {key} is {there!r}, not {value!r}: give another output, or delete it."
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
