"""The training loop that the stages share: steps, the average, the log, checks, checkpoints and stops.

What a step does depends on the recipe and on its number alone, so that a stage that was stopped ends with the weights of one
that was not.
"""

import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import RunStoppedError
from .checkpoint import Progress, save_checkpoint
from .run import Log, RunOptions, autocast, stop_on_signals

__all__ = ["CHECKPOINT", "CHECKS", "Stage", "average_of", "broadcast_weights", "cosine", "least_seconds", "open_log", "train"]

CHECKPOINT = "checkpoint.safetensors"
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"  # images/s below one a second too
LOG_EVERY = 20  # steps
CHECKS = 10  # of a run at least

Losses = dict[str, Tensor]


@dataclass
class Stage(ABC):
    """What is trained, and all that lives as long as its training.

    Args:
        accelerator: The device and the processes.
        model: What is trained.
        average: Its average.
        optimizer: Its optimizer.
        folder: Where to write.
        log: Its log, opened.
        options: How to carry it out.
        steps: How many steps it has.
        image_count: How many images there are to train on.
        clip_norm: Largest norm of the gradient; 0 for any.
    """

    shown: ClassVar[dict[str, str]]  # what the progress bar shows: the log's columns, and what they are called there

    accelerator: Accelerator
    model: nn.Module
    average: ModelEmaV3
    optimizer: torch.optim.Optimizer
    folder: Path
    log: Log
    options: RunOptions
    steps: int
    image_count: int
    clip_norm: float

    @property
    def checks(self) -> int:
        """How often it is measured: ten times, or once an epoch where there are more."""
        return max(CHECKS, math.ceil(self.images_seen(self.steps) / self.image_count))

    @abstractmethod
    def images_seen(self, step: int) -> float:
        """Return how many whole images' worth of pixels have been seen after a step."""

    @abstractmethod
    def learning_rate(self, done: float) -> float:
        """Return the learning rate when `done` of all pixels have been seen."""

    @abstractmethod
    def batches_left(self, step: int) -> Iterator[Sequence[Any]]:
        """Yield, for each step after `step`, this process's parts of its batch."""

    @abstractmethod
    def losses(self, model: nn.Module, part: Any, number: int, done: float) -> tuple[Tensor, Losses]:
        """Return the loss of a part and its terms; `number` is the part's, of all parts of all processes and steps."""

    def clipped(self) -> list[list[nn.Parameter]]:
        """Return the parameters, in lists of which each has its gradient clipped for itself."""
        return [list(self.model.parameters())]

    @abstractmethod
    def check(self, step: int) -> dict[str, float]:
        """Measure the average on held-out images, by the log's columns, and save it."""


@contextmanager
def open_log(
    folder: Path, columns: Sequence[str], progress: Progress, accelerator: Accelerator, options: RunOptions
) -> Iterator[tuple[Log, Callable[[], bool]]]:
    """Open a stage's log, and hold back the first signal to stop; yield the log, and whether there was such a signal."""
    log = Log(folder, columns, progress.step, active=accelerator.is_main_process, tensorboard=options.tensorboard)
    with stop_on_signals() as stopped, log:
        yield log, stopped


def train(stage: Stage, progress: Progress, stopped: Callable[[], bool]) -> None:
    """Take the steps that are left.

    Raises:
        RunStoppedError: `stopped` returned true; there is a checkpoint to go on from.
        SaveError: something cannot be written.
    """
    accelerator = stage.accelerator
    main, last = accelerator.is_main_process, stage.steps
    model, optimizer = accelerator.prepare(stage.model, stage.optimizer)
    images = stage.images_seen(last)
    checks = stage.checks
    step, seconds = progress
    tick = saved = time.monotonic()
    losses: defaultdict[str, list[Tensor]] = defaultdict(list)  # since the last line of the log
    shown: dict[str, str] = {}
    seen, quiet = round(stage.images_seen(step)), None if main else True
    with tqdm(total=round(images), initial=seen, unit="image", bar_format=BAR, disable=quiet) as bar:
        for parts in stage.batches_left(step):
            done = stage.images_seen(step) / images
            step += 1
            for terms in _take_step(stage, model, optimizer, parts, step, done):
                for name, value in terms.items():
                    losses[name].append(value)
            stage.average.update(stage.model, step)
            now = time.monotonic()
            seconds, tick = seconds + min(now - tick, 60.0), now  # a machine that was asleep has not used up the time
            bar.update(round(stage.images_seen(step)) - bar.n)
            check = math.floor(checks * stage.images_seen(step) / images) > math.floor(checks * done)
            stop = _agreed(stopped(), accelerator)
            if step % LOG_EVERY == 0 or check or stop:
                values = mean_losses(losses, accelerator)
                losses.clear()
                if check:
                    values |= stage.check(step)
                shown |= {name: f"{values[key]:.3f}" for key, name in stage.shown.items() if key in values}
                bar.set_postfix(shown, refresh=False)
                stage.log.write(step, seconds=seconds, images=stage.images_seen(step), lr=stage.learning_rate(done), **values)
            if main and (check or stop or now - saved > 60 * stage.options.save_minutes):
                progress = Progress(step, seconds)
                save_checkpoint(stage.folder / CHECKPOINT, stage.model, stage.average.module, stage.optimizer, progress)
                saved = time.monotonic()
            if stop:
                raise RunStoppedError(f"stopped after step {step} of {last}: go on with --resume.")
            if check:
                tick = time.monotonic()


def _take_step(
    stage: Stage, model: nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Any], step: int, done: float
) -> list[Losses]:
    """Take one step, `done` of the pixels having been seen; return the terms of the loss of each part."""
    accelerator = stage.accelerator
    for group in optimizer.param_groups:
        group["lr"] = stage.learning_rate(done) * group.get("lr_scale", 1.0)
    optimizer.zero_grad(set_to_none=True)
    found = []
    for i, part in enumerate(parts):
        last = i + 1 == len(parts)
        with nullcontext() if last else accelerator.no_sync(model), autocast(accelerator.device, stage.options.precision):
            number = (step * len(parts) + i) * accelerator.num_processes + accelerator.process_index
            loss, terms = stage.losses(model, part, number, done)
            accelerator.backward(loss / len(parts))
        found.append({name: value.detach() for name, value in terms.items()})
    if stage.clip_norm:
        for parameters in stage.clipped():
            accelerator.clip_grad_norm_(parameters, stage.clip_norm)
    optimizer.step()
    return found


def average_of(model: nn.Module, decay: float) -> ModelEmaV3:
    """Return a model's average, whose decay after a step is 1 - 9 / (8 + step) until that reaches `decay`."""
    return ModelEmaV3(model, decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)


def cosine(done: float, warmup: float, lowest: float = 0.0) -> float:
    """Return the share of the highest learning rate: it rises over `warmup` of the run, and falls to `lowest` by a cosine."""
    rise = min(1.0, (done + 1e-3) / warmup) if warmup else 1.0
    return min(rise, lowest + (1 - lowest) * (0.5 + 0.5 * math.cos(math.pi * done)))


def least_seconds(step: Callable[[], None], accelerator: Accelerator) -> float:
    """Return what a step takes: the least of three, of as many as 30 seconds allow; the mean over processes."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < 30:
        begin = time.monotonic()
        step()
        times.append(time.monotonic() - begin)
    took = accelerator.reduce(torch.tensor(min(times), device=accelerator.device), reduction="mean")
    return cast(Tensor, took).item()


def broadcast_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Copy the first process's weights to the others: BatchNorm's running statistics, and what came of them, differ."""
    if accelerator.num_processes > 1:
        for value in model.state_dict().values():
            torch.distributed.broadcast(value, 0)


def mean_losses(losses: dict[str, list[Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """Return the mean of each loss, of all processes."""
    return {
        name: cast(Tensor, accelerator.reduce(torch.stack(values).mean(), reduction="mean")).item()
        for name, values in sorted(losses.items())
    }


def _agreed(stopped: bool, accelerator: Accelerator) -> bool:
    """Return whether any process was told to stop, so that all of them do after the same step."""
    if accelerator.num_processes == 1:
        return stopped
    return bool(cast(Tensor, accelerator.reduce(torch.tensor(float(stopped), device=accelerator.device))).item())
