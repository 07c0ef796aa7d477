"""Distil a GroupMixFormer SAM encoder from the cached features of MobileSAM's, on one machine.

    groupmix-sam distill photos/ --teacher mobile_sam.pt --minutes 60 --output runs/mine

What the recipe is made of:

* the loss is the squared error of the final features in units of the teacher's variance, so 1 - R2, plus that of two maps on
  the way (FitNets, arXiv 1412.6550), whose weight falls to nothing;
* the first blocks of stage 3 start from the MLPs and local convolutions of the teacher's third stage, which have the same
  width, and the neck from ridge regression of the teacher's features on the untrained backbone's;
* small crops first, whole pictures as at inference last; AdamW, warm-up, cosine; the weights are averaged over steps (EMA);
* at the end the neck is fitted anew by ridge regression, on whole pictures.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..encoders.config import STRIDE
from ..encoders.groupmixformer import GroupMixFormer
from ..encoders.neck import ConcatNeck
from ..errors import InvalidInputError
from .data import MAPS, Maps, crop_batches, whole_pictures

__all__ = ["Phase", "Recipe", "distill", "r2_score"]

LOG_EVERY = 50  # steps
CHECK_EVERY = 300.0  # seconds
FINISH_PICTURES = 150  # for the last fit of the neck, whose 61 440 weights they outnumber by far


@dataclass(frozen=True)
class Phase:
    """A part of the training: from which share of the time on, on crops of which side in pixels, how many at once.

    A crop of 0 stands for whole pictures, one at a time.
    """

    begin: float
    crop: int
    batch_size: int


@dataclass(frozen=True)
class Recipe:
    """How to distil; the defaults, but for the time, are those of the weights that ship."""

    minutes: float = 60.0
    lr: float = 2e-3
    weight_decay: float = 0.05
    hint_weight: float = 0.5
    ema_decay: float = 0.998
    warmup: float = 0.02
    seed: int = 0
    phases: tuple[Phase, ...] = field(default=(Phase(0.0, 256, 8), Phase(0.65, 512, 2), Phase(0.85, 0, 1)))

    def __post_init__(self) -> None:
        for name in ("minutes", "lr", "warmup"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
                raise InvalidInputError(f"{name} is {value!r}: give a positive number.")
        begins = [phase.begin for phase in self.phases]
        if not begins or begins[0] != 0 or begins != sorted(begins) or begins[-1] >= 1:
            raise InvalidInputError(f"the phases begin at {begins}: the first begins at 0, the others later and before 1.")
        for phase in self.phases:
            if phase.crop < 0 or phase.crop % STRIDE or phase.batch_size < 1:
                raise InvalidInputError(f"{phase}: the crop is 0 or a multiple of {STRIDE}, the batch has one or more.")


class Student(nn.Module):
    """An encoder, with the 1x1 maps that its hints go through; they are dropped after training."""

    def __init__(self, encoder: GroupMixFormer) -> None:
        super().__init__()
        self.encoder = encoder
        chs = encoder.feature_info[2]["num_chs"]
        self.hint_in = nn.Conv2d(chs, 160, kernel_size=1)
        self.hint_out = nn.Conv2d(chs, 160, kernel_size=1)
        for hint in (self.hint_in, self.hint_out):
            nn.init.dirac_(hint.weight)
            nn.init.zeros_(cast(Tensor, hint.bias))

    def forward(self, x: Tensor) -> Maps:
        """Map B x 3 x H x W to the teacher's maps, B x H/16 x W/16 x C."""
        seen: list[Tensor] = []
        patch_embed = cast(Any, self.encoder.stages[2]).patch_embed
        handle = patch_embed.register_forward_hook(lambda _m, _i, out: seen.append(out))
        try:
            features, stages = self.encoder.forward_intermediates(x)
        finally:
            handle.remove()
        maps = {"features": features, "hint_in": self.hint_in(seen[0]), "hint_out": self.hint_out(stages[2])}
        return {name: m.permute(0, 2, 3, 1) for name, m in maps.items()}


def start_from_teacher(encoder: GroupMixFormer, teacher: dict[str, Tensor]) -> None:
    """Copy the MLPs, their norms and the local convolutions of MobileSAM's third stage into the student's.

    `teacher` has MobileSAM's names. A local convolution replaces its input and the student's is added to it, so the identity is
    taken off. Blocks of another width are left as they are.
    """
    for i, block in enumerate(cast(Any, encoder.stages[2]).blocks):
        prefix = f"image_encoder.layers.2.blocks.{i}."
        fc1 = teacher.get(f"{prefix}mlp.fc1.weight")
        if fc1 is None or fc1.shape != block.mlp.fc1.weight.shape:
            break
        for module, name in ((block.norm2, "norm"), (block.mlp.fc1, "fc1"), (block.mlp.fc2, "fc2")):
            module.load_state_dict({k: teacher[f"{prefix}mlp.{name}.{k}"] for k in ("weight", "bias")})
        bn = {k: teacher[f"{prefix}local_conv.bn.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        scale = bn["weight"] / (bn["running_var"] + 1e-5).sqrt()
        weight = teacher[f"{prefix}local_conv.c.weight"] * scale[:, None, None, None]
        weight[:, :, 1, 1] -= 1.0
        block.cpe.load_state_dict({"weight": weight, "bias": bn["bias"] - bn["running_mean"] * scale})


@torch.no_grad()
def fit_neck(encoder: GroupMixFormer, batches: Iterator[Maps], ridge: float) -> None:
    """Set the neck to the ridge regression of the teacher's features on the backbone's.

    `ridge` is what is added to the diagonal, in units of its mean.
    """
    proj = cast(ConcatNeck, encoder.neck).proj
    gram = torch.zeros(proj.in_channels, proj.in_channels, dtype=torch.float64)
    cross = torch.zeros(proj.in_channels, proj.out_channels, dtype=torch.float64)
    seen: list[Tensor] = []
    handle = proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    try:
        for batch in batches:
            encoder(batch["input"])
            rows, columns = batch["features"].shape[1:3]
            x = seen.pop().permute(0, 2, 3, 1)[:, :rows, :columns].flatten(0, 2).double()
            gram += x.T @ x
            cross += x.T @ batch["features"].flatten(0, 2).double()
    finally:
        handle.remove()
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    proj.weight.copy_(torch.linalg.solve(gram, cross).T[:, :, None, None])


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards `model`; faster in the first steps, which are soon out of date."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, weight)
        else:
            ours.copy_(theirs)


@torch.no_grad()
def r2_score(encoder: nn.Module, cached: Sequence[Path], image_size: int = 1024) -> float:
    """Return how well an encoder's features match the teacher's on whole pictures: 1 - squared error / variance.

    The variance is about each channel's mean over all the pictures; padding does not count. 1 is a perfect match, 0 is no
    better than those means.
    """
    error = total = 0.0
    count = 0
    sums = torch.zeros(256, dtype=torch.float64)
    for picture in whole_pictures(cached, image_size):
        target = picture["features"].double()
        rows, columns = target.shape[1:3]
        out = encoder(picture["input"]).permute(0, 2, 3, 1)[:, :rows, :columns]
        error += (out - target).square().sum().item()
        total += target.square().sum().item()
        sums += target.sum((0, 1, 2))
        count += rows * columns
    return 1.0 - error / (total - (sums.square() / count).sum().item())


def check_student(encoder: nn.Module) -> None:
    """Raise InvalidInputError unless the encoder is a GroupMixFormer of 3 stages or more with the paper's neck."""
    if (
        not isinstance(encoder, GroupMixFormer)
        or not isinstance(encoder.neck, ConcatNeck)
        or len(encoder.feature_info) < 3
        or encoder.feature_info[2]["reduction"] != STRIDE
    ):
        raise InvalidInputError(
            f"a {type(encoder).__name__} like this cannot be distilled here: use one of the gmf_sam_ encoders."
        )


def distill(
    encoder: GroupMixFormer,
    teacher: dict[str, Tensor],
    cached: Sequence[Path],
    held_out: Sequence[Path],
    folder: Path,
    recipe: Recipe,
    image_size: int = 1024,
) -> nn.Module:
    """Train an encoder on cached pictures; return its averaged weights, with the R2 on `held_out` printed and logged.

    Writes into `folder`: `log.csv`, and every five minutes `encoder.safetensors`, the average so far.

    Args:
        encoder: A GroupMixFormer with the paper's neck.
        teacher: MobileSAM's weights, by its own names.
        cached: Files of `cache_features` to train on.
        held_out: Files of `cache_features` to measure on.
        folder: Where to write.
        recipe: How to train.
        image_size: Side in pixels that the pictures were cached at.
    """
    check_student(encoder)
    if not cached or not held_out:
        raise InvalidInputError(f"{len(cached)} pictures to train on and {len(held_out)} held out: give one of each or more.")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    student = Student(encoder).train()
    start_from_teacher(encoder, teacher)
    fit_neck(encoder, islice(phase_batches(cached, recipe.phases[0], image_size, generator), 24), ridge=1e-3)
    variance = map_variance(cached[:32], image_size)
    average = deepcopy(student).eval()
    optimizer = torch.optim.AdamW(parameter_groups(student, recipe.weight_decay), lr=recipe.lr)

    seconds, tick, checked = 0.0, time.monotonic(), 0.0
    phase: Phase | None = None
    batches: Iterator[Maps] = iter(())
    total = round(60 * recipe.minutes)
    with (folder / "log.csv").open("w") as log, tqdm(total=total, unit="s", disable=None) as bar:
        print("step", "seconds", "crop", "lr", *MAPS, "r2", sep=",", file=log)
        step = 0
        while (progress := seconds / (60 * recipe.minutes)) < 1:
            current = next(p for p in reversed(recipe.phases) if progress >= p.begin)
            if current is not phase:
                phase = current
                batches = phase_batches(cached, phase, image_size, generator)
                if not phase.crop:
                    freeze_batch_norm(student)
            batch = next(batches)
            lr = recipe.lr * min((progress + 1e-3) / recipe.warmup, 0.5 + 0.5 * math.cos(math.pi * progress))
            hint_weight = recipe.hint_weight * (1 - progress)
            losses = training_step(student, optimizer, batch, variance, lr, hint_weight)
            update_average(average, student, recipe.ema_decay, step)
            step += 1
            now = time.monotonic()
            took = min(now - tick, 10.0)  # a machine that was asleep has not used up the time
            seconds, tick = seconds + took, now
            bar.update(min(round(seconds), total) - bar.n)
            bar.set_postfix(step=step, crop=phase.crop or "whole", r2=f"{1 - losses['features']:.3f}", refresh=False)
            if seconds - checked > CHECK_EVERY or step % LOG_EVERY == 0:
                score = None
                if seconds - checked > CHECK_EVERY:
                    checked = seconds
                    score = r2_score(average.encoder, held_out[:8], image_size)
                    save_encoder(average.encoder, folder / "encoder.safetensors")
                    tick = time.monotonic()
                log_row(log, step, seconds, phase.crop, lr, losses, score)
        trained = r2_score(average.encoder, held_out, image_size)
        log_row(log, step, seconds, 0, 0.0, losses, trained)
        fit_neck(average.encoder, whole_pictures(cached[:FINISH_PICTURES], image_size), ridge=1e-5)
        score = r2_score(average.encoder, held_out, image_size)
        log_row(log, step, seconds, 0, 0.0, losses, score)
    save_encoder(average.encoder, folder / "encoder.safetensors")
    print(f"R2 {score:.4f} on {len(held_out)} held-out pictures after {step} steps, {trained:.4f} before the neck's last fit")
    return average.encoder


def training_step(
    student: Student, optimizer: torch.optim.Optimizer, batch: Maps, variance: dict[str, float], lr: float, hint_weight: float
) -> dict[str, float]:
    """Take one step; return the squared error of each map over the teacher's variance."""
    outputs = student(batch["input"])
    rows, columns = batch["features"].shape[1:3]  # the padding of a whole picture does not count
    losses = {name: (outputs[name][:, :rows, :columns] - batch[name]).square().mean() / variance[name] for name in MAPS}
    loss = losses["features"] + hint_weight * (losses["hint_in"] + losses["hint_out"])
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    return {name: value.item() for name, value in losses.items()}


def phase_batches(cached: Sequence[Path], phase: Phase, image_size: int, generator: torch.Generator) -> Iterator[Maps]:
    """Yield a phase's batches forever."""
    if phase.crop:
        yield from crop_batches(cached, phase.crop, phase.batch_size, generator)
    while True:
        order = torch.randperm(len(cached), generator=generator).tolist()
        yield from whole_pictures([cached[i] for i in order], image_size)


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep BatchNorm's statistics as they are: one picture at a time is too few to estimate them from."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices and kernels decay, biases and norms do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def map_variance(cached: Sequence[Path], image_size: int) -> dict[str, float]:
    """Return the mean variance of each of the teacher's maps about its channels' means."""
    pictures = list(whole_pictures(cached, image_size))
    return {name: torch.cat([p[name].flatten(0, 2) for p in pictures]).var(0).mean().item() for name in MAPS}


def log_row(
    log: TextIO, step: int, seconds: float, crop: int, lr: float, losses: dict[str, float], score: float | None
) -> None:
    errors = [f"{losses[name]:.4f}" for name in MAPS]
    r2 = "" if score is None else f"{score:.4f}"
    print(step, round(seconds), crop, f"{lr:.2e}", *errors, r2, sep=",", file=log, flush=True)


def save_encoder(encoder: nn.Module, path: Path) -> None:
    """Write an encoder's weights beside `path`, then rename."""
    part = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, part)
    os.replace(part, path)
