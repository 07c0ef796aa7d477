"""A run around its training: what it is of, its log, how it is stopped, what suits the machine."""

import csv
import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

import torch
import yaml
from accelerate import Accelerator, PartialState
from torch import nn

from ..devices import usable_cpus
from ..errors import InvalidInputError, MissingExtraError, SaveError
from ..files import write_beside
from ..images import ImageFile
from .data import CachedImage, Grid
from .recipe import Recipe
from .teacher import Teacher

__all__ = [
    "Log",
    "RunOptions",
    "autocast",
    "describe_run",
    "open_run",
    "process_state",
    "save_run",
    "start_accelerator",
    "stop_on_signals",
]

RUN_FILE = "run.yaml"


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; what comes out is the same but for rounding.

    Args:
        resume: Go on where the run in the folder was stopped; begin if there is none.
        accumulate: Parts that each process takes its share of a batch in, one after the other.
        grad_checkpointing: Trade time for memory: compute the encoder's activations anew in the backward pass. BatchNorm's
            running statistics then see each batch twice.
        precision: "auto" (bf16 where the GPU has it, else fp32), "fp32" or "bf16".
        save_minutes: Time between checkpoints.
        tensorboard: Log for TensorBoard too.
    """

    resume: bool = False
    accumulate: int = 1
    grad_checkpointing: bool = False
    precision: str = "auto"
    save_minutes: float = 5.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise InvalidInputError(f"accumulate is {self.accumulate}: give 1 or more.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InvalidInputError(f"precision is {self.precision!r}: use 'auto', 'fp32' or 'bf16'.")
        if not self.save_minutes > 0:
            raise InvalidInputError(f"save_minutes is {self.save_minutes}: give a positive number.")


def process_state() -> PartialState:
    """Return accelerate's view of the processes, as its launcher or torchrun started them."""
    return PartialState(cpu=_on_cpu())


def start_accelerator() -> Accelerator:
    """Return accelerate's hold of the devices and processes."""
    # Its own mixed precision could not be another one in a second run of the same process: see `autocast`.
    return Accelerator(mixed_precision="no", cpu=_on_cpu())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context of a forward pass in a precision as in `RunOptions`."""
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def _on_cpu() -> bool:
    # Said outright, as accelerate takes torchrun's processes on a machine without a GPU for so many runs of one process.
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def describe_run(
    encoder: nn.Module,
    teacher: Teacher,
    images: Sequence[ImageFile] | Sequence[CachedImage],
    held_out: Sequence[CachedImage],
    recipe: Recipe,
) -> dict[str, Any]:
    """Return what makes a run this run and no other."""
    digest = hashlib.sha256()
    for image in [*images, *held_out]:
        name = image.maps.name if isinstance(image, CachedImage) else str(image)
        digest.update(name.encode() + b"\0")
    return {
        "recipe": recipe.to_dict() | {"decoder": None},  # which another stage looks at
        "encoder": str(cast(Any, encoder).pretrained_cfg["architecture"]),
        "start": digest_of(encoder),
        "teacher": teacher.key,
        "image_size": Grid.of(encoder).image_size,
        "images": len(images),
        "held_out": len(held_out),
        "images_sha256": digest.hexdigest(),
    }


def digest_of(what: nn.Module | Sequence[str]) -> str:
    """Return 16 digits that tell a module's weights, or a list of names, from others."""
    digest = hashlib.sha256()
    if isinstance(what, nn.Module):
        for value in what.state_dict().values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
    else:
        digest.update("\0".join(what).encode())
    return digest.hexdigest()[:16]


def check_folder(folder: Path, *, resume: bool) -> None:
    """Make a run's folder; raise InvalidInputError if it cannot be, or if it has a run that is not to be resumed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InvalidInputError(f"{folder} cannot be made ({e}): give another --output.") from e
    if not resume and (folder / RUN_FILE).is_file():
        raise InvalidInputError(f"{folder} has a run in it: go on with --resume, or give another --output.")


def open_run(folder: Path, description: dict[str, Any], planned: Sequence[str], *, resume: bool) -> dict[str, Any] | None:
    """Return what a run that was stopped wrote of itself, None for a new one; in a folder that is made if need be.

    Args:
        folder: The run's.
        description: What makes it this run.
        planned: What it wrote beside that, by name.
        resume: Whether to go on with it.

    Raises:
        InvalidInputError: the folder has a run and it is not to be resumed, or it is another one.
    """
    check_folder(folder, resume=resume)
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = {key: record[key] for key in (*description, *planned)}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as e:
        raise InvalidInputError(f"{path} is no record of a run ({e}): begin again with another --output.") from e
    lines = list(_differences("", description, {key: values[key] for key in description}))
    if lines:
        raise InvalidInputError(
            f"{folder} has another run in it and cannot be resumed:\n  " + "\n  ".join(lines) + "\n"
            "ask for the same again, or give another --output."
        )
    return values


def save_run(folder: Path, record: dict[str, Any]) -> None:
    """Write what a run is."""
    write_beside(folder / RUN_FILE, lambda part: part.write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8"))


def _differences(prefix: str, asked: Any, found: Any) -> Iterator[str]:
    """Yield what differs, a line each."""
    if isinstance(asked, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*asked, *found]):
            yield from _differences(f"{prefix}.{key}" if prefix else key, asked.get(key), found.get(key))
    elif asked != found:
        yield f"{prefix}: {found} there, {asked} asked for"


class Log:
    """`log.csv`, and TensorBoard if asked for. What a run that was stopped logged after its checkpoint is taken back.

    Args:
        folder: Where to write.
        columns: What rows may have, "step" and "lr" among it.
        step: The last step that is kept.
        active: Whether this process writes at all.
        tensorboard: Whether to write for TensorBoard too.
    """

    def __init__(self, folder: Path, columns: Sequence[str], step: int, *, active: bool, tensorboard: bool) -> None:
        self.path = folder / "log.csv"
        self.file: TextIO | None = None
        self.board: Any = None
        if not active:
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as e:
                raise MissingExtraError.of("tensorboard", "tensorboard") from e
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        rows: list[dict[str, str]] = []
        if step and self.path.is_file():
            with self.path.open(newline="") as f:
                # The line that ends a run, with R2 and no losses, is written anew.
                rows = [row for row in csv.DictReader(f) if int(row["step"]) <= step and row["lr"]]
        write_beside(self.path, lambda part: _write_rows(part, columns, rows))
        self.file = self.path.open("a", newline="")
        self.writer = csv.DictWriter(self.file, columns, restval="")

    def write(self, step: int, **values: float) -> None:
        """Add a row; the values are named as the columns."""
        if self.file is None:
            return
        try:
            self.writer.writerow({"step": step} | {name: f"{value:.6g}" for name, value in values.items()})
            self.file.flush()
        except OSError as e:
            raise SaveError(f"{self.path} cannot be written ({e}): free some space, and go on with --resume.") from e
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            with suppress(OSError):  # what a full disk did not take, which has been told of
                self.file.close()
        if self.board is not None:
            self.board.close()


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or Ctrl-C into a function that returns true; a second one acts as ever."""
    seen: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():  # no other may handle signals
        before |= {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def loader_workers(accelerator: Accelerator) -> int:
    """Return how many processes are to read images ahead of a training process."""
    if accelerator.device.type == "cpu":
        return 1
    return max(1, min(8, usable_cpus() // accelerator.num_processes))
