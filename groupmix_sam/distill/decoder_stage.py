"""The decoder stage: the mask decoder learns the teacher's masks from the features of its own encoder, which is frozen.

The features are cached, so that a step costs no pass of the encoder. A recipe with a rate for the encoder trains both halves:
the encoder then learns the teacher's features beside its masks, so that it stays usable with the teacher's decoder. Prompts are
in the loop, as in EdgeSAM (arXiv 2312.06660): the teacher's decoder says what is to be seen at drawn points; its masks are then
asked for by single points, by boxes as people draw them, by boxes with a point and by several points, and some are corrected by
a click where the answer was wrong.

Single points teach all four masks, each the teacher's own, so that they stay apart; what the teacher doubts counts less. Other
prompts teach the one mask that they are used for, as in SAM. The predicted IoU is taught the IoU with the teacher's mask times
the IoU that the teacher predicts: what the mask is worth is at most what the teacher's is.

The stage itself asks an `Asker` for its samples. `labels.py` has the one whose masks are people's.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import InvalidInputError
from ..files import make_folder
from ..memory import keep_freed_memory
from .cache import is_whole, write_tensors
from .checkpoint import Progress, load_checkpoint, save_module
from .data import CachedImage, Grid, Share, as_input, draw_order, whole_images
from .decoder import Decoder, FrozenDecoder, TrainedDecoder
from .loop import CHECKPOINT, CHECKS, Losses, Stage, average_of, broadcast_weights, cosine, open_log, train
from .losses import best_of, draw_points, mask_boxes, mask_errors, mask_ious
from .recipe import DecoderRecipe, Recipe
from .run import RunOptions, autocast, digest_of, open_run, process_state, save_run, start_accelerator
from .student import freeze_batch_norm

__all__ = ["Asker", "EncodedImage", "Prompts", "Sample", "TeacherAsker", "encode_images", "input_images", "train_decoder"]

COLUMNS = ("step", "seconds", "images", "lr", "masks", "scores", "features", "box_iou", "point_iou")
RESULT = "decoder.safetensors"
ENCODER = "encoder.safetensors"
KEPT = "last_good_check.safetensors"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the way from the start to the last good check
STEPS_TRIED = 20  # to know how many take the minutes that are given
TRIED_SHARE = 0.05  # of the minutes, at most
CHECK_IMAGES = 8
CHECK_POINTS = 8  # of an image
MASK_WEIGHT = 5.0  # of cross-entropy and dice
FEATURE_WEIGHT = 5.0  # where the encoder learns too: without it the features leave the teacher's
CORRECTION_WEIGHT = 0.5
SINGLE_WEIGHT = 0.5  # of the mask for one instance, where a single point asks
PICKED_SHARE = 0.3  # of the loss of a single point's mask: of the one that is used, as it predicts the best IoU; else the best
SCORE_RATE = 3.0  # of the head for the predicted IoUs, times the learning rate
KINDS = ("box", "box and point", "points")
KIND_SHARES = (0.65, 0.15, 0.2)
EXACT_SHARE = 0.3  # of boxes that are not moved
ALIKE = 0.7  # IoU from which two masks are the same instance
LARGEST_SHARE = 0.5  # of an image, that an instance covers
MOST_SIDES = 2  # of an image, that an instance touches: a floor or a wall touches three or four
ORDER = 10**6  # tells the order of images from those of the phases on features


@dataclass(frozen=True)
class EncodedImage:
    """An image in the cache, with the file of its own encoder's features of the padded whole, 256 x h x w, fp16."""

    image: CachedImage
    features: Path

    @property
    def name(self) -> str:
        """Return what tells it from others, and from itself with other weights."""
        return self.features.name

    def read(self, device: torch.device) -> "View":
        """Return what the decoders see."""
        rows, columns = self.image.grid()
        maps = load_file(self.image.maps)["features"][:rows, :columns]
        teacher = maps.permute(2, 0, 1)[None].float()
        return View(load_file(self.features)["features"][None].float().to(device), teacher.to(device))


@dataclass(frozen=True)
class InputImage:
    """An image in the cache, for an encoder that learns."""

    image: CachedImage
    image_size: int

    @property
    def name(self) -> str:
        """Return what tells it from others."""
        return self.image.maps.name

    def read(self, device: torch.device) -> "View":
        """Return what the encoder sees, 1 x 3 x S x S, and the teacher's features."""
        maps = self.image.read()
        teacher = maps["features"].permute(2, 0, 1)[None].float()
        return View(as_input(maps["image"], self.image_size).to(device), teacher.to(device))


class View(NamedTuple):
    """An image to the student, 1 x 256 x h x w with the padding, and to the teacher, 1 x 256 x rows x columns without it.

    Where the encoder learns, `student` is its input.
    """

    student: Tensor
    teacher: Tensor


class Prompts(NamedTuple):
    """Prompts of one kind, P of them, and the teacher's masks for them.

    Args:
        points: P x K x 2, x and y in pixels of the padded input; or None.
        labels: P x K; or None for points on the foreground.
        boxes: P x 4; or None.
        logits: P x M x 4 rows x 4 columns, the teacher's. Of the student's four masks the first M are learnt.
        scores: P x M, the teacher's predicted IoUs, from 0 to 1.
        weights: P x M, of the masks' losses; they sum up to 1 over all prompts of a part of an image's loss.
        ambiguous: Single points whose one wanted mask, M = 1, may be any of the student's.
    """

    points: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    logits: Tensor
    scores: Tensor
    weights: Tensor
    ambiguous: bool = False


class Sample(NamedTuple):
    """An image in training.

    Args:
        image: Its features, 1 x 256 x h x w with the padding; or the encoder's input, 1 x 3 x S x S, where the encoder learns.
        prompts: What is asked.
        cells: The rows and columns of features that are kept, without the padding; None for all.
        teacher: The teacher's features, 1 x 256 x rows x columns without padding, that an encoder learns too; or None.
    """

    image: Tensor
    prompts: Sequence[Prompts]
    cells: tuple[int, int] | None
    teacher: Tensor | None = None


def encode_images(encoder: nn.Module, images: Sequence[CachedImage], folder: Path, grid: Grid) -> list[EncodedImage]:
    """Write an encoder's features of cached images, once; several processes share the images out.

    A file of 2 MB an image is named after the image, the encoder's weights and its stride.
    """
    make_folder(folder)
    state = process_state()
    key = f"{digest_of(encoder)}-{grid.stride}"
    encoded = [EncodedImage(image, folder / f"student-{key}-{image.image.name.removeprefix('image-')}") for image in images]
    mine = encoded[state.process_index :: state.num_processes]
    encoder = encoder.to(state.device).eval()
    for entry in tqdm(mine, desc="encoder", unit="image", disable=None if state.is_main_process else True):
        if not is_whole(entry.features):
            (sample,) = whole_images([entry.image], grid)
            with torch.no_grad():
                features = encoder(sample["input"].to(state.device))[0]
            write_tensors(entry.features, {"features": features.half().cpu().contiguous()})
    state.wait_for_everyone()
    return encoded


def input_images(images: Sequence[CachedImage], grid: Grid) -> list[InputImage]:
    """Return cached images for an encoder that learns."""
    return [InputImage(image, grid.image_size) for image in images]


def train_decoder(
    sam: Sam,
    asker: "Asker",
    folder: Path,
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008  it is frozen
) -> dict[str, Any]:
    """Train a Sam's mask decoder on what an asker wants, and put the result into the Sam; return the record of the stage.

    The result is a blend of the weights' average with those before: the recipe's, or, where the asker keeps the last good
    check, the best one of that (WiSE-FT, arXiv 2109.01903). Writes into `folder`: `run.yaml`, `log.csv`,
    `checkpoint.safetensors` and `decoder.safetensors` (the result).

    Args:
        sam: Its prompt encoder stays as it is, and so does its image encoder unless the recipe has a rate for it.
        asker: The samples, and what is measured.
        folder: Where to write.
        recipe: How to train: its `decoder` and its `seed`.
        options: How to carry it out.

    Raises:
        InvalidInputError: there is another stage in the folder.
        RunStoppedError: the process was told to stop (SIGTERM, Ctrl-C); the stage can be resumed.
        SaveError: something cannot be written; the checkpoint before it is kept.
    """
    accelerator = start_accelerator()
    how = cast(DecoderRecipe, recipe.decoder)
    student = Student(TrainedDecoder(sam), sam.image_encoder if how.encoder_rate else None).to(accelerator.device)
    asker.to(accelerator.device)
    description: dict[str, Any] = {"recipe": asdict(how) | {"seed": recipe.seed}, "start": digest_of(student)}
    description |= asker.describe()
    start = {name: value.detach().clone() for name, value in student.state_dict().items()}
    record = open_run(folder, description, ("steps", "before"), resume=options.resume)
    accelerator.wait_for_everyone()  # before the first writes what the others look for
    keep_freed_memory()
    part_size = how.batch_size // (accelerator.num_processes * options.accumulate)
    optimizer = make_optimizer(student, how)
    average = average_of(student, how.ema_decay)
    progress = Progress()
    if record is not None and (folder / CHECKPOINT).is_file():
        progress = load_checkpoint(folder / CHECKPOINT, student, average.module, optimizer)
    if record is None:
        steps = how.epochs * asker.count / how.batch_size
        if how.minutes is not None:
            steps = 60 * how.minutes / step_seconds(student, asker, how, part_size, accelerator, options)
        before = asker.measure(average.module.decoder, average.module.encoder)
        record = description | {"steps": max(1, round(steps)), "before": before}
        if accelerator.is_main_process:
            save_run(folder, record)
    with open_log(folder, COLUMNS, progress, accelerator, options) as (log, stopped):
        stage = DecoderStage(
            accelerator,
            student,
            average,
            optimizer,
            folder,
            log,
            options,
            record["steps"],
            asker.count,
            how.clip_norm,
            how,
            part_size,
            asker,
            start,
        )
        if asker.keeps_best and not progress.step:
            stage.keep_start()
        train(stage, progress, stopped)
        end = stage.finish()
    sam.mask_decoder.load_state_dict(stage.decoder.mask_decoder.state_dict())
    if stage.encoder is not None:
        sam.image_encoder.load_state_dict(stage.encoder.state_dict())
    return record | end


class Student(nn.Module):
    """A decoder that learns, whose forward pass is an image's whole loss: prompts, masks, corrections.

    Args:
        decoder: The decoder.
        encoder: An image encoder that learns too; it is copied. Its BatchNorm keeps its statistics.
    """

    def __init__(self, decoder: TrainedDecoder, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder = None if encoder is None else deepcopy(encoder).train().requires_grad_(True)
        if self.encoder is not None:
            freeze_batch_norm(self.encoder)

    def forward(self, sample: Sample, corrections: float, seed: int) -> Losses:
        """Return the terms of the loss.

        Args:
            sample: The image and the prompts.
            corrections: Share of the prompts for one instance that are corrected.
            seed: Of what is corrected, and where.
        """
        features = sample.image if self.encoder is None else self.encoder(sample.image)
        terms: dict[str, list[Tensor]] = {"masks": [], "scores": []}
        if sample.teacher is not None:
            terms["features"] = [feature_error(features, sample.teacher)]
        if sample.cells is not None:
            features = features[..., : sample.cells[0], : sample.cells[1]]
        generator = torch.Generator().manual_seed(seed)
        for prompts in sample.prompts:
            logits = self._answer(features, prompts, None, 1.0, terms)
            if prompts.logits.shape[1] > 1:
                continue
            chosen = torch.rand(len(logits), generator=generator) < corrections
            if chosen.any():
                corrected = correct(select(prompts, chosen), logits[chosen], self.decoder.stride, generator)
                masks = logits[chosen] if torch.rand((), generator=generator) < 0.5 else None
                self._answer(features, corrected, masks, CORRECTION_WEIGHT, terms)
        return {name: torch.stack(values).sum() for name, values in terms.items()}

    def _answer(
        self, features: Tensor, prompts: Prompts, masks: Tensor | None, weight: float, terms: dict[str, list[Tensor]]
    ) -> Tensor:
        """Add what an answer costs to `terms`; return the logits of the mask that is used, P x 1 x 4h x 4w, detached."""
        out = self.decoder(features, prompts.points, prompts.boxes, prompts.labels, masks)
        count, height, width = prompts.logits.shape[1:]
        wanted, weights, used = prompts.logits, prompts.weights, out.logits[:, :1]
        if prompts.ambiguous:
            count = out.logits.shape[1]
            wanted = wanted.expand(-1, count, -1, -1)
        logits, scores = out.logits[:, :count, :height, :width], out.scores[:, :count]
        errors = mask_errors(logits, wanted, torch.ones(height, width, device=logits.device))
        if prompts.ambiguous:
            rows, best, picked = torch.arange(len(errors)), errors[:, 1:].argmin(1) + 1, scores[:, 1:].argmax(1) + 1
            shares = torch.zeros_like(errors)
            shares[:, 0] = SINGLE_WEIGHT
            shares[rows, best] += 1 - PICKED_SHARE
            shares[rows, picked] += PICKED_SHARE
            weights, used = weights * shares / (1 + SINGLE_WEIGHT), out.logits[rows, picked, None]
        terms["masks"].append(weight * (errors * weights).sum())
        target = mask_ious(logits.detach() > 0, wanted > 0) * prompts.scores
        terms["scores"].append(weight * (scores.float() - target).square().mean())
        return used.detach().float()


class Asker(ABC):
    """The samples of a stage, the same for the same number, and what is measured on held-out images.

    Attributes:
        count: How many images there are to train on.
        corrections: Share of the prompts for one instance that are corrected.
        keeps_best: Whether the weights of the last good check are the result, and not those of the end.
        tolerance: How far a good check may be below the best one before it.
    """

    count: int
    corrections: float
    keeps_best = False
    tolerance = 0.0

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Work on a device from now on."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what makes the samples these and no others, as plain values."""

    @abstractmethod
    def __call__(self, number: int) -> Sample:
        """Return a sample by its number."""

    @abstractmethod
    def measure(self, decoder: Decoder, encoder: nn.Module | None = None, *, quick: bool = False) -> dict[str, float]:
        """Return mean IoUs on held-out images, "box_iou" and "point_iou".

        Args:
            decoder: The decoder.
            encoder: The encoder, if it learns too.
            quick: Measure on fewer images, for a check on the way.
        """

    def score(self, found: Mapping[str, float]) -> float:
        """Return what checks are compared by, rounded as no log would change it."""
        return round((found["box_iou"] + found["point_iou"]) / 2, 4)


class TeacherAsker(Asker):
    """Images with the teacher's masks.

    Args:
        teacher: The teacher's decoder.
        images: To train on, from `encode_images`; where the recipe has a rate for the encoder, from `input_images`.
        held_out: To measure on.
        how: How many prompts.
        seed: Of everything random.

    Raises:
        InvalidInputError: there is no image.
    """

    def __init__(
        self,
        teacher: FrozenDecoder,
        images: Sequence[EncodedImage] | Sequence[InputImage],
        held_out: Sequence[EncodedImage] | Sequence[InputImage],
        how: DecoderRecipe,
        seed: int,
    ) -> None:
        if not images or not held_out:
            raise InvalidInputError("there is no image to train on, or none to measure on: give one or more of each.")
        self.teacher, self.images, self.held_out, self.how, self.seed = teacher, images, held_out, how, seed
        self.count, self.corrections = len(images), how.corrections
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self.device = device
        self.teacher.to(device)

    def describe(self) -> dict[str, Any]:
        return {
            "teacher": digest_of(self.teacher),
            "images": len(self.images),
            "held_out": len(self.held_out),
            "images_sha256": digest_of([entry.name for entry in [*self.images, *self.held_out]]),
        }

    def __call__(self, number: int) -> Sample:
        """Half of the samples are without the features of the padding."""
        epoch, position = divmod(number, len(self.images))
        order = draw_order(len(self.images), self.seed, ORDER, epoch)
        view = self.images[int(order[position])].read(self.device)
        rng = np.random.default_rng([self.seed, number])
        rows, columns = view.teacher.shape[-2:]
        cells = (rows, columns) if rng.random() < 0.5 else None
        prompts = ask(self.teacher, view.teacher, self.how, rng)
        return Sample(view.student, prompts, cells, view.teacher if self.how.encoder_rate else None)

    def measure(self, decoder: Decoder, encoder: nn.Module | None = None, *, quick: bool = False) -> dict[str, float]:
        return measure(decoder, self.teacher, self.held_out[: CHECK_IMAGES if quick else None], self.device, encoder)


@torch.no_grad()
def ask(teacher: FrozenDecoder, features: Tensor, how: DecoderRecipe, rng: np.random.Generator) -> list[Prompts]:
    """Draw prompts on an image and ask the teacher for its masks; of its features, 1 x 256 x rows x columns without padding."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    device = features.device
    rows, columns = features.shape[-2:]
    count = 2 * max(how.points, how.instances)
    points = draw_points(torch.ones(rows, columns, dtype=torch.bool), count, generator, teacher.stride).to(device)
    by_point = teacher(features, points)
    singles = are_instances(best_of(by_point) > 0)
    if not singles.any():  # a plain image
        singles[:] = True
    singles = singles.nonzero().flatten()[: how.points]
    scores = by_point.scores[singles].clamp(0, 1)
    trust = scores.square() * torch.tensor([SINGLE_WEIGHT, 1.0, 1.0, 1.0], device=device)
    asked = [Prompts(points[singles, None], None, None, by_point.logits[singles], scores, trust / trust.sum().clamp(min=1e-6))]
    masks, worth = (m[:, 1:].flatten(0, 1) for m in by_point)
    chosen = pick_instances(masks > 0, worth)
    chosen = [chosen[i] for i in rng.permutation(len(chosen))[: how.instances]]
    if not chosen:
        return asked
    boxes = mask_boxes(masks[chosen] > 0, teacher.stride)
    by_box = teacher(features, boxes=boxes)
    logits, scores = by_box.logits[:, :1], by_box.scores[:, :1].clamp(0, 1)
    kept = (logits > 0).flatten(1).any(1).cpu()
    kinds = torch.from_numpy(rng.choice(len(KINDS), len(boxes), p=KIND_SHARES))
    sides = torch.tensor([columns, rows, columns, rows], device=device) * teacher.stride
    drawn = torch.minimum(move_boxes(boxes, teacher.stride, rng).clamp(min=0), sides)
    several = int(rng.integers(2, 5))
    for kind, name in enumerate(KINDS):
        which = kept & (kinds == kind)
        if not which.any():
            continue
        inside = None
        if name != "box":
            inside = points_in(logits[which, 0] > 0, several if name == "points" else 1, teacher.stride, generator)
        weights = torch.full((int(which.sum()), 1), 1 / int(kept.sum()), device=device)
        asked.append(Prompts(inside, None, None if name == "points" else drawn[which], logits[which], scores[which], weights))
    return asked


def pick_instances(masks: Tensor, scores: Tensor) -> list[int]:
    """Return the numbers of masks, P x h x w, that are worth asking for, the best first.

    They are instances that are not tiny, of these the better half by predicted IoU, and unlike each other.
    """
    fit = are_instances(masks) & (masks.flatten(1).float().mean(1) > 5e-4)
    if fit.any():
        fit &= scores >= scores[fit].median()
    chosen: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if fit[i] and not (chosen and (mask_ious(masks[chosen], masks[i]) >= ALIKE).any()):
            chosen.append(i)
    return chosen


def are_instances(masks: Tensor) -> Tensor:
    """Return which masks, P x h x w, look like instances and not like a background, by their shares and the sides they touch.

    A decoder that learns the boxes of backgrounds answers a box of the whole image by the background of what it holds.
    """
    touched = sum(side.any(1).int() for side in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]))
    return (cast(Tensor, touched) <= MOST_SIDES) & (masks.flatten(1).float().mean(1) < LARGEST_SHARE)


def move_boxes(boxes: Tensor, stride: int, rng: np.random.Generator) -> Tensor:
    """Move the sides of boxes, P x 4, as hands do: by a twentieth of the box's side or so, a tenth at most, and by rounding."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2).cpu().numpy()
    moves = rng.normal(0, 0.05, sides.shape).clip(-0.1, 0.1) * sides + rng.uniform(-0.5, 0.5, sides.shape) * stride / 4
    moves *= rng.random((len(sides), 1)) >= EXACT_SHARE
    return boxes + torch.from_numpy(moves).to(boxes)


def points_in(masks: Tensor, count: int, stride: int, generator: torch.Generator) -> Tensor:
    """Draw points in masks, P x h x w, none of which is empty: P x count x 2, x and y in pixels of the padded input."""
    drawn = torch.multinomial(masks.flatten(1).float().cpu(), count, replacement=True, generator=generator)
    y, x = drawn // masks.shape[2], drawn % masks.shape[2]
    return ((torch.stack([x, y], dim=2) + 0.5) * (stride / 4)).to(masks.device)


def correct(prompts: Prompts, logits: Tensor, stride: int, generator: torch.Generator) -> Prompts:
    """Add a click to prompts for one instance each, where the mask, P x 1 x 4h x 4w logits, is not the teacher's.

    Where it is, the click confirms it.
    """
    wanted = prompts.logits[:, 0] > 0
    wrong = (logits[:, 0, : wanted.shape[1], : wanted.shape[2]] > 0) ^ wanted
    wrong = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, wanted)
    clicks = points_in(wrong, 1, stride, generator)
    x, y = (clicks[:, 0] / (stride / 4)).long().unbind(1)
    labels = wanted[torch.arange(len(wanted), device=wanted.device), y, x].float()[:, None]
    prompts = prompts._replace(ambiguous=False)
    if prompts.points is None:
        return prompts._replace(points=clicks, labels=labels)
    before = torch.ones_like(prompts.points[..., 0]) if prompts.labels is None else prompts.labels
    return prompts._replace(points=torch.cat([prompts.points, clicks], dim=1), labels=torch.cat([before, labels], dim=1))


def select(prompts: Prompts, which: Tensor) -> Prompts:
    """Return some of the prompts."""

    def part(value: Any) -> Any:
        return value[which] if isinstance(value, Tensor) else value

    return Prompts(*map(part, prompts))


@dataclass
class DecoderStage(Stage):
    """The mask decoder learns the masks that an asker wants.

    Args:
        how: The recipe.
        part_size: Images that a process takes at a time.
        asker: The samples.
        start: The student's weights before.
    """

    shown = {"masks": "loss", "box_iou": "IoU by box", "point_iou": "by point"}  # noqa: RUF012  a ClassVar

    how: DecoderRecipe
    part_size: int
    asker: Asker
    start: dict[str, Tensor]

    @property
    def checks(self) -> int:
        # Of a few images an epoch is short.
        return CHECKS if self.asker.keeps_best else super().checks

    @property
    def decoder(self) -> TrainedDecoder:
        """Return the average's decoder."""
        return cast(Student, self.average.module).decoder

    @property
    def encoder(self) -> nn.Module | None:
        """Return the average's encoder, if it learns."""
        return cast(Student, self.average.module).encoder

    def images_seen(self, step: int) -> float:
        return step * self.how.batch_size

    def learning_rate(self, done: float) -> float:
        return self.how.lr * cosine(done, self.how.warmup, self.how.lowest_lr / self.how.lr)

    def batches_left(self, step: int) -> Iterator[list[list[int]]]:
        accelerator, parts = self.accelerator, self.options.accumulate
        share = iter(Share(step, self.steps, self.part_size, parts, accelerator.process_index, accelerator.num_processes))
        for _ in range(step, self.steps):
            yield [next(share) for _ in range(parts)]

    def losses(self, model: nn.Module, part: list[int], number: int, done: float) -> tuple[Tensor, Losses]:
        return image_losses(model, self.asker, part)

    def clipped(self) -> list[list[nn.Parameter]]:
        # The head for the predicted IoUs alone, as what it learns would shorten the others' steps; the encoder likewise.
        student = cast(Student, self.model)
        parts = [list(student.decoder.mask_decoder.iou_prediction_head.parameters())]
        if student.encoder is not None:
            parts.append(list(student.encoder.parameters()))
        known = {id(p) for part in parts for p in part}
        return [*parts, [p for p in student.parameters() if id(p) not in known]]

    def check(self, step: int) -> dict[str, float]:
        """Measure the average on held-out images; save it, unless it is worse than an earlier one that is kept."""
        found = self.measure(quick=True)
        if not self.asker.keeps_best:
            self._save_result()
        elif self.asker.score(found) > self.best_before(step) - self.asker.tolerance:
            self._keep()
        return found

    def measure(self, *, quick: bool = False) -> dict[str, float]:
        """Return the average's IoUs, the same in all processes."""
        broadcast_weights(self.average.module, self.accelerator)
        return self.asker.measure(self.decoder, self.encoder, quick=quick)

    def best_before(self, step: int) -> float:
        """Return the highest score of the checks before a step, as the log has them."""
        rows = [row for row in self.log.read() if int(row["step"]) < step and row["box_iou"]]
        return max(
            (self.asker.score({name: float(row[name]) for name in ("box_iou", "point_iou")}) for row in rows), default=-1.0
        )

    def keep_start(self) -> None:
        """Count the weights that the stage begins with as its first check."""
        self._keep()
        self.log.write(0, images=0, lr=0.0, **self.measure(quick=True))

    def finish(self) -> dict[str, Any]:
        """Make the average the result and write it; return what is measured of it, and its share of what was learnt."""
        self.accelerator.wait_for_everyone()
        share = self.how.blend
        if self.asker.keeps_best:
            end = load_file(self.folder / KEPT)
            share = max(SHARES, key=lambda share: self.asker.score(self.blend(end, share).measure(quick=True)))
        else:
            end = {name: value.clone() for name, value in self.average.module.state_dict().items()}
        after = self.blend(end, share).measure()
        self.log.write(self.steps, images=self.images_seen(self.steps), **after)
        self._save_result()
        self.accelerator.wait_for_everyone()
        return {"blend": share, "after": after}

    def blend(self, end: dict[str, Tensor], share: float) -> "DecoderStage":
        """Make the average the blend of the weights that the stage began with and others, and return the stage."""
        blended = {
            name: value.lerp(end[name].to(value.device), share) if value.is_floating_point() else value
            for name, value in self.start.items()
        }
        self.average.module.load_state_dict(blended)
        return self

    def _keep(self) -> None:
        if self.accelerator.is_main_process:
            save_module(self.average.module, self.folder / KEPT)

    def _save_result(self) -> None:
        if self.accelerator.is_main_process:
            save_module(self.decoder.mask_decoder, self.folder / RESULT)
            if self.encoder is not None:
                save_module(self.encoder, self.folder / ENCODER)


def image_losses(model: nn.Module, asker: Asker, numbers: Sequence[int]) -> tuple[Tensor, Losses]:
    """Return the mean loss of samples, and its terms."""
    found: list[Losses] = []
    for number in numbers:
        found.append(model(asker(number), asker.corrections, number))
    terms = {name: torch.stack([losses[name] for losses in found]).mean() for name in found[0]}
    loss = MASK_WEIGHT * terms["masks"] + terms["scores"]
    if "features" in terms:
        loss = loss + FEATURE_WEIGHT * terms["features"]
    return loss, terms


def feature_error(features: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of features, without the padding, over the variance of the image's channels."""
    rows, columns = teacher.shape[-2:]
    ours = features[..., :rows, :columns].float()  # out of autocast's bf16
    variance = (teacher - teacher.mean((-2, -1), keepdim=True)).square().mean()
    return (ours - teacher).square().mean() / variance.clamp(min=1e-6)


def make_optimizer(student: Student, how: DecoderRecipe) -> torch.optim.Optimizer:
    """Return AdamW, with the head for the predicted IoUs and the encoder in groups of their own."""
    rates = {id(p): SCORE_RATE for p in student.decoder.mask_decoder.iou_prediction_head.parameters()}
    kept = {name for name, _ in student.named_parameters() if name.endswith(("token.weight", "tokens.weight"))}
    if student.encoder is not None:
        rates |= {id(p): how.encoder_rate for p in student.encoder.parameters()}
        kept |= {f"encoder.{name}" for name in cast(Any, student.encoder).no_weight_decay()}
    groups = []
    for group in param_groups_weight_decay(student, how.weight_decay, no_weight_decay_list=kept):
        for scale in dict.fromkeys([1.0, *rates.values()]):
            members = [p for p in group["params"] if rates.get(id(p), 1.0) == scale]
            groups.append({"params": members, "weight_decay": group["weight_decay"], "lr_scale": scale})
    optimizer = torch.optim.AdamW(groups, lr=how.lr, betas=(0.9, 0.99), fused=True)
    if how.pull:
        pull_back(optimizer, how.pull)
    return optimizer


def pull_back(optimizer: torch.optim.Optimizer, pull: float) -> None:
    """Make each step move the parameters back by `pull` times the learning rate of the way from where they are now."""
    pairs = [[(p, p.detach().clone()) for p in group["params"]] for group in optimizer.param_groups]

    def back(*_: Any) -> None:
        with torch.no_grad():
            for group, members in zip(optimizer.param_groups, pairs, strict=True):
                for p, start in members:
                    p.lerp_(start.to(p.device), min(1.0, pull * group["lr"]))

    optimizer.register_step_post_hook(back)


def step_seconds(
    student: Student, asker: Asker, how: DecoderRecipe, part_size: int, accelerator: Any, options: RunOptions
) -> float:
    """Return what a step takes in the mean, tried on a copy of the student: images with more instances take longer."""
    trial = deepcopy(student)
    optimizer = make_optimizer(trial, how)
    numbers = iter(range(1000 * part_size * options.accumulate))

    def step() -> None:
        for _ in range(options.accumulate):
            with autocast(accelerator.device, options.precision):
                loss, _ = image_losses(trial, asker, [next(numbers) for _ in range(part_size)])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the first makes what the others use again
    count, begin, seconds = 0, time.monotonic(), 0.0
    while not count or (count < STEPS_TRIED and seconds < TRIED_SHARE * 60 * cast(float, how.minutes)):
        step()
        count, seconds = count + 1, time.monotonic() - begin
    took = torch.tensor(seconds / count, device=accelerator.device)
    return cast(Tensor, accelerator.reduce(took, reduction="mean")).item()


@torch.no_grad()
def measure(
    decoder: Decoder,
    teacher: FrozenDecoder,
    images: Sequence[EncodedImage] | Sequence[InputImage],
    device: torch.device,
    encoder: nn.Module | None = None,
) -> dict[str, float]:
    """Return the mean IoU of a decoder's masks with the teacher's: by the boxes of the teacher's masks, and by single points.

    Points are drawn over the images, always the same. Of the three masks that a point may mean, each decoder's best by
    predicted IoU counts. Images of the padded whole are decoded, as `SamPredictor` does.
    """
    generator = torch.Generator().manual_seed(0)
    by_box: list[Tensor] = []
    by_point: list[Tensor] = []
    for image in images:
        view = image.read(device)
        features = view.student if encoder is None else encoder(view.student)
        rows, columns = view.teacher.shape[-2:]
        points = draw_points(torch.ones(rows, columns, dtype=torch.bool), CHECK_POINTS, generator, teacher.stride).to(device)
        theirs = best_of(teacher(view.teacher, points)) > 0
        ours = best_of(decoder(features, points))[..., : 4 * rows, : 4 * columns] > 0
        by_point.append(mask_ious(ours, theirs).cpu())
        theirs = theirs[theirs.flatten(1).any(1)]
        if len(theirs):
            boxes = mask_boxes(theirs, teacher.stride)
            wanted = teacher(view.teacher, boxes=boxes).logits[:, 0] > 0
            found = decoder(features, boxes=boxes).logits[:, 0, : 4 * rows, : 4 * columns] > 0
            by_box.append(mask_ious(found, wanted).cpu())
    means = {"box_iou": by_box, "point_iou": by_point}
    return {name: float(torch.cat(values).mean()) if values else 1.0 for name, values in means.items()}
