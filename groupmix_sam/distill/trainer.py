"""Distil a SAM encoder from a teacher's features.

    one CPU or one GPU
        groupmix-sam distill photos/ --teacher mobile_sam.pt --minutes 60 --output runs/mine
    several GPUs of a machine
        torchrun --nproc_per_node 4 -m groupmix_sam distill photos/ --teacher mobile_sam.pt --output runs/mine
        accelerate launch --multi_gpu --num_processes 4 -m groupmix_sam distill ...
    several machines, the same on each, with photos/ and runs/ on a disk that they share
        torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 -m groupmix_sam distill ...
    after a stop of any kind
        the same with --resume

docs/training.md explains the recipe's parts.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from ..errors import InvalidInputError, SaveError
from ..files import write_beside
from ..images import ImageFile
from ..memory import keep_freed_memory
from .checkpoint import Progress, load_checkpoint, save_module
from .data import CachedImage, Grid, Maps, Samples, Share, sample_loader, whole_images
from .decoder import FrozenDecoder
from .loop import CHECKPOINT, Stage, average_of, broadcast_weights, cosine, least_seconds, open_log, train
from .losses import Objective
from .plots import draw_features, stack_images
from .recipe import Phase, Recipe, save_recipe
from .run import (
    RunOptions,
    autocast,
    describe_run,
    loader_workers,
    open_run,
    process_state,
    save_run,
    start_accelerator,
)
from .student import Student, check_student, fit_neck, freeze_batch_norm, scale_neck, start_from_teacher
from .teacher import Teacher, teach

__all__ = ["r2_score", "train_student"]

COLUMNS = ("step", "seconds", "images", "lr", "features", "hint_in", "hint_out", "masks", "r2")
CHECK_IMAGES = 8
START_IMAGES = 12  # for the neck's start and the teacher's variance: a few, as the teacher may have to see them first
FINISH_IMAGES = 150  # for the last fit of the neck, whose 61 440 weights they outnumber by far


def train_student(
    encoder: nn.Module,
    teacher: Teacher,
    images: Sequence[ImageFile] | Sequence[CachedImage],
    held_out: Sequence[CachedImage],
    folder: Path,
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008  it is frozen
    *,
    teacher_weights: dict[str, Tensor] | None = None,
    decoder: FrozenDecoder | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train an encoder to give the teacher's features; return it with the averaged weights, and the record of the run.

    Writes into `folder`: `recipe.yaml`, `run.yaml` (what it is run on), `log.csv`, `checkpoint.safetensors`, `features/` and
    `features.png` (teacher and student side by side at each check), `encoder.safetensors` (the average), and `skipped.txt` if
    an image could not be read.

    Args:
        encoder: A SAM encoder of this package; turn the recipe's starts off if it is trained already.
        teacher: Asked for the features that are not in the cache.
        images: To train on: from `cache_features`, or as they are, for the teacher to see each time anew.
        held_out: To measure on.
        folder: Where to write.
        recipe: How to train.
        options: How to carry it out.
        teacher_weights: MobileSAM's weights by its own names, for the recipe's `teacher_blocks`.
        decoder: The frozen mask decoder, for phases whose target is masks.

    Raises:
        InvalidInputError: the recipe does not fit the encoder, the images or the number of processes; there is a run in the
            folder already, or, to resume, another one.
        RunStoppedError: the process was told to stop (SIGTERM, Ctrl-C); the run can be resumed.
        SaveError: something cannot be written; the checkpoint before it is kept.
    """
    accelerator = start_accelerator()
    check_run(encoder, images, recipe, options)
    if not held_out:
        raise InvalidInputError("no image is held out to measure on: give one or more.")
    if any(phase.target == "masks" for phase in recipe.phases) and decoder is None:
        raise InvalidInputError("the recipe has a phase on masks: pass the mask decoder.")
    description = describe_run(encoder, teacher, images, held_out, recipe)
    record = open_run(folder, description, ("steps", "variance"), resume=options.resume)
    accelerator.wait_for_everyone()  # before the first writes what the others look for
    keep_freed_memory()

    hints = {name: chs for name, chs in teacher.channels.items() if name != "features" and recipe.hint_weight > 0}
    student = Student(encoder, hints).to(accelerator.device).train()
    if options.grad_checkpointing:
        cast(Any, encoder).set_grad_checkpointing()
    if decoder is not None:
        decoder.to(accelerator.device)
    feed = Feed(images, teacher, recipe, Grid.of(encoder), accelerator, options.accumulate, folder / "skipped.txt")
    resumed = record is not None and (folder / CHECKPOINT).is_file()
    if not resumed and accelerator.is_main_process:
        feed.skipped.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    if not resumed:
        if recipe.teacher_blocks:
            start_from_teacher(encoder, teacher_weights or {})
        variance = start_neck(student, feed)
    if record is None:
        steps = plan_steps(student, feed, Objective(recipe, variance, decoder), options.precision)
        record = description | {"steps": steps, "variance": variance}
        if accelerator.is_main_process:
            save_run(folder, record)
            save_recipe(recipe, folder / "recipe.yaml")
    objective = Objective(recipe, record["variance"], decoder)
    optimizer = make_optimizer(student, recipe)
    average = average_of(student, recipe.ema_decay)
    progress = Progress()
    if resumed:
        progress = load_checkpoint(folder / CHECKPOINT, student, average.module, optimizer)
    with open_log(folder, COLUMNS, progress, accelerator, options) as (log, stopped):
        stage = FeatureStage(
            accelerator,
            student,
            average,
            optimizer,
            folder,
            log,
            options,
            sum(record["steps"]),
            len(images),
            recipe.clip_norm,
            objective,
            feed,
            record["steps"],
            held_out,
        )
        train(stage, progress, stopped)
        score = stage.finish()
    return stage.encoder, record | {"r2": score, "skipped": feed.read_skipped()}


@dataclass
class FeatureStage(Stage):
    """The encoder learns the teacher's features.

    Args:
        objective: The losses.
        feed: The images, and the recipe.
        phase_steps: The steps of each phase.
        held_out: To measure on.
    """

    shown = {"features": "loss", "r2": "R2"}  # noqa: RUF012  a ClassVar

    objective: Objective
    feed: "Feed"
    phase_steps: list[int]
    held_out: Sequence[CachedImage]

    def images_seen(self, step: int) -> float:
        done = 0.0
        for phase, steps in zip(self.feed.recipe.phases, self.phase_steps, strict=True):
            done += min(step, steps) * pixels_of(phase, self.feed.grid.image_size)
            step = max(0, step - steps)
        return done

    def learning_rate(self, done: float) -> float:
        return learning_rate(self.feed.recipe, done)

    def batches_left(self, step: int) -> Iterator[list[tuple[Phase, Maps]]]:
        first = 0
        recipe = self.feed.recipe
        for number, (phase, steps) in enumerate(zip(recipe.phases, self.phase_steps, strict=True)):
            done = max(0, step - first)
            features_before = number > 0 and recipe.phases[number - 1].target == "features"
            if done < steps:
                if done == 0 and phase.target == "masks" and features_before and recipe.ridge_finish:
                    self.finish_neck()
                self.model.train()
                if self.feed.part_size(phase) < 2:
                    freeze_batch_norm(self.model)
                batches = self.feed.batches(number, done, steps)
                for _ in range(done, steps):
                    yield [(phase, next(batches)) for _ in range(self.feed.accumulate)]
            first += steps

    def losses(self, model: nn.Module, part: tuple[Phase, Maps], number: int, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        phase, batch = part
        return self.objective(model(batch["input"]), batch, phase, 1 - done, number)

    def check(self, step: int) -> dict[str, float]:
        """Measure R2 on the first held-out images, draw the features of one, save the average."""
        score = self.score(self.held_out[:CHECK_IMAGES])
        if self.accelerator.is_main_process:
            image = next(whole_images(self.held_out[:1], self.feed.grid))
            rows, columns = self.held_out[0].grid()
            stride = self.feed.grid.stride
            with torch.no_grad():
                student = self.encoder(image["input"].to(self.accelerator.device))[0].permute(1, 2, 0)[:rows, :columns]
            row = draw_features(
                image["input"][0, :, : rows * stride, : columns * stride],
                image["features"][0, :rows, :columns],
                student,
                f"step {step}, R2 {score:.3f}",
            )
            path = self.folder / "features" / f"{step:07}.png"
            path.parent.mkdir(exist_ok=True)
            write_beside(path, lambda part: row.save(part, format="PNG"))
            save_module(self.encoder, self.folder / "encoder.safetensors")
        return {"r2": score}

    @property
    def encoder(self) -> nn.Module:
        """Return the average's encoder."""
        return cast(Student, self.average.module).encoder

    def score(self, images: Sequence[CachedImage]) -> float:
        """Return the average's R2, the same in all processes."""
        broadcast_weights(self.average.module, self.accelerator)
        return r2_score(self.encoder, images, self.feed.grid, self.accelerator)

    def finish_neck(self) -> None:
        """Fit the average's neck anew on whole images, and go on from the average."""
        fit_neck(self.encoder, self.feed.whole_images(FINISH_IMAGES), ridge=1e-5)
        broadcast_weights(self.average.module, self.accelerator)
        self.model.load_state_dict(self.average.module.state_dict())

    def finish(self) -> float:
        """Fit the neck for the last time, measure on all held-out images, write what is left to write; return the R2."""
        recipe = self.feed.recipe
        if recipe.ridge_finish and recipe.phases[-1].target == "features":
            self.finish_neck()
        score = self.score(self.held_out)
        self.log.write(self.steps, images=self.images_seen(self.steps), r2=score)
        if self.accelerator.is_main_process:
            save_module(self.encoder, self.folder / "encoder.safetensors")
            stack_images(sorted((self.folder / "features").glob("*.png")), self.folder / "features.png")
        self.accelerator.wait_for_everyone()
        return score


@dataclass
class Feed:
    """The images, as batches on the device with the teacher's maps.

    `skipped` is a file of those that could not be read, a line each, which all processes add to, before a stop and after.
    """

    images: Sequence[ImageFile] | Sequence[CachedImage]
    teacher: Teacher
    recipe: Recipe
    grid: Grid
    accelerator: Accelerator
    accumulate: int
    skipped: Path

    def part_size(self, phase: Phase) -> int:
        """Return how many crops or images a process takes at a time."""
        return phase.batch_size // (self.accelerator.num_processes * self.accumulate)

    def batches(self, number: int, first: int, last: int) -> Iterator[Maps]:
        """Yield this process's parts of the batches of a phase's steps from `first` to before `last`."""
        samples = Samples(self.images, self.recipe, number, self.grid)
        size = self.part_size(samples.phase) // samples.crops
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        yield from self._load(samples, Share(first, last, size, self.accumulate, process, processes))

    def whole_images(self, count: int) -> Iterator[Maps]:
        """Yield up to so many different images, one at a time, as they are seen at inference."""
        recipe = replace(self.recipe, phases=(Phase(),), augmentation="crop", crops_per_image=1)
        samples = Samples(self.images, recipe, 0, self.grid)
        yield from self._load(samples, Share(0, min(count, len(self.images)), 1, 1, 0, 1))

    def _note_skipped(self, names: list[str]) -> None:
        try:
            with self.skipped.open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in names)
        except OSError as e:
            raise SaveError(f"{self.skipped} cannot be written ({e}): free some space, and go on with --resume.") from e

    def read_skipped(self) -> list[str]:
        """Return the images that could not be read, each once."""
        return sorted(set(self.skipped.read_text(encoding="utf-8").splitlines())) if self.skipped.is_file() else []

    def _load(self, samples: Samples, share: Share) -> Iterator[Maps]:
        device = self.accelerator.device
        for batch in sample_loader(samples, share, loader_workers(self.accelerator)):
            unread = batch.pop("skipped", torch.zeros(0)).long().tolist()
            if unread:
                self._note_skipped([str(self.images[i]) for i in unread])
            yield teach({name: m.to(device, non_blocking=True) for name, m in batch.items()}, self.teacher)


def check_run(
    encoder: nn.Module,
    images: Sequence[ImageFile] | Sequence[CachedImage],
    recipe: Recipe,
    options: RunOptions,
) -> None:
    """Raise InvalidInputError for what cannot be run."""
    check_student(encoder)
    if options.grad_checkpointing:
        try:
            for enable in (True, False):
                cast(Any, encoder).set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as e:  # timm's models that have none assert that it is not asked for
            name = cast(Any, encoder).pretrained_cfg["architecture"]
            raise InvalidInputError(f"{name} has no gradient checkpointing ({e}): leave it out, or use another encoder.") from e
    if not images:
        raise InvalidInputError("there is no image to train on: give one or more.")
    if recipe.augmentation == "resized_crop" and isinstance(images[0], CachedImage):
        raise InvalidInputError("a resized crop is another image each time and cannot come from the cache: use none.")
    parts = process_state().num_processes * options.accumulate
    for phase in recipe.phases:
        multiple = parts * (recipe.crops_per_image if phase.crop else 1)
        if phase.batch_size % multiple:
            raise InvalidInputError(
                f"{phase}: a batch in {parts} parts, by processes and accumulation, is a multiple of {multiple}: change either."
            )


def pixels_of(phase: Phase, image_size: int) -> float:
    """Return the pixels of a phase's batch, in whole padded images."""
    return phase.batch_size * ((phase.crop or image_size) / image_size) ** 2


def start_neck(student: Student, feed: Feed) -> dict[str, float]:
    """Fit the neck, if the recipe says so; return the mean variance of the teacher's maps about their channels' means."""
    recipe = feed.recipe
    if not recipe.ridge_start and recipe.loss == "huber" and not student.hints:
        return {"features": 1.0}  # the loss does not look at it
    batches = list(feed.whole_images(START_IMAGES))
    if recipe.ridge_start and not fit_neck(student.encoder, batches, ridge=1e-3):
        scale_neck(student.encoder, batches)
    names = ["features", *student.hints]
    return {name: torch.cat([b[name][b["valid"]] for b in batches]).float().var(0).mean().item() for name in names}


def plan_steps(student: Student, feed: Feed, objective: Objective, precision: str) -> list[int]:
    """Return the steps of each phase; for a recipe of so many minutes, by what steps take here, tried on a copy."""
    recipe = feed.recipe
    share = sum(phase.share for phase in recipe.phases)
    of_epoch = [phase.share / share * len(feed.images) / pixels_of(phase, feed.grid.image_size) for phase in recipe.phases]
    epochs = recipe.epochs
    if recipe.minutes is not None:
        took = [step_seconds(student, feed, objective, precision, number) for number in range(len(recipe.phases))]
        epochs = 60 * recipe.minutes / sum(n * t for n, t in zip(of_epoch, took, strict=True))
    return [max(1, round(epochs * n)) for n in of_epoch]


def step_seconds(student: Student, feed: Feed, objective: Objective, precision: str, number: int) -> float:
    """Return what a step of a phase takes, tried on a copy of the student."""
    phase = feed.recipe.phases[number]
    trial = deepcopy(student)
    optimizer = make_optimizer(trial, feed.recipe)
    batches = feed.batches(number, 0, 3)

    def step() -> None:
        for batch in (next(batches) for _ in range(feed.accumulate)):
            with autocast(feed.accelerator.device, precision):
                loss, _ = objective(trial(batch["input"]), batch, phase, 1.0, 0)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return least_seconds(step, feed.accelerator)


def make_optimizer(student: Student, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer: biases and norms do not decay, nor does what the encoder's `no_weight_decay` names."""
    kept = {f"encoder.{name}" for name in cast(Any, student.encoder).no_weight_decay()}
    groups = param_groups_weight_decay(student, recipe.weight_decay, no_weight_decay_list=kept)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
    # Fused, as a loop over hundreds of small tensors waits for the other threads hundreds of times.
    return kind(groups, lr=recipe.lr, fused=True)


def learning_rate(recipe: Recipe, done: float) -> float:
    """Return the learning rate when `done` of the run's pixels have been seen."""
    return recipe.lr * cosine(done, recipe.warmup, lowest=0.0 if recipe.schedule == "cosine" else 1.0)


@torch.no_grad()
def r2_score(
    encoder: nn.Module,
    images: Sequence[CachedImage],
    grid: Grid,
    accelerator: Accelerator | None = None,
) -> float:
    """Return how well an encoder's features match the teacher's on whole images: 1 - squared error / variance.

    The variance is about each channel's mean over all the images; padding does not count. 1 is a perfect match, 0 is no
    better than those means. With an accelerator, its processes share the images out.
    """
    process, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = accelerator.device if accelerator else "cpu"
    sums = torch.zeros(3 + 256, dtype=torch.float64)  # error, total, count, and the channels' sums
    for image in whole_images(images[process::processes], grid):
        valid = image["valid"]
        target = image["features"][valid].double()
        out = encoder(image["input"].to(device)).permute(0, 2, 3, 1).cpu()[valid]
        sums[0] += (out - target).square().sum()
        sums[1] += target.square().sum()
        sums[2] += len(target)
        sums[3:] += target.sum(0)
    if accelerator and processes > 1:  # a single one may be on MPS, which has no fp64
        sums = cast(Tensor, accelerator.reduce(sums.to(device))).cpu()
    error, total, count = sums[:3].tolist()
    return 1.0 - error / (total - (sums[3:].square() / count).sum().item())
