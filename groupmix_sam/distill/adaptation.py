"""Adapt an encoder that is trained already to the images of one's own line."""

import json
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InvalidInputError
from ..files import write_beside
from ..images import ImageFile, find_images
from .data import CachedImage, whole_images
from .decoder import FrozenDecoder
from .losses import draw_points, teacher_mask_iou
from .pipeline import MAX_HELD_OUT, Models, prepare_models, prepare_run, train_and_save
from .recipe import Phase, Recipe
from .run import RunOptions, process_state

__all__ = ["ADAPT", "adapt", "teacher_iou"]

# A low rate and no new fit of the neck, so that what was known is kept; and whole frames, as crops undo within a minute more of
# what trained weights know of whole ones than they teach (docs/research/2026-11-25-adapt-whole-frames.md).
ADAPT = Recipe(minutes=20.0, phases=(Phase(1.0, 0, 1),), lr=2e-4, ridge_finish=False).continued()
POINTS = 16  # of each held-out image
LEAST = 8  # held-out images, of which an interval can be told
GENERAL_SHARE = 0.25  # of the training images, where a general set is given
BLOCKS = 4  # that frames are held out in, of three or more each
MAX_GAP = 5  # frames between a block and the training frames


def adapt(
    images: str | PathLike[str],
    teacher: str | PathLike[str],
    output: str | PathLike[str],
    recipe: Recipe = ADAPT,
    options: RunOptions = RunOptions(),  # noqa: B008  it is frozen
    *,
    checkpoint: str | PathLike[str] = "default",
    encoder: str | None = None,
    replay_images: str | PathLike[str] | None = None,
    cache: str | PathLike[str] | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    image_size: int | None = None,
) -> dict[str, Any]:
    """Distil on from trained weights on one's own unlabelled frames; return the record, with the IoU before and after.

    Writes into `output` what `distill` writes, and `teacher_iou.json`: for every held-out frame, the IoU of the student's masks
    with the teacher's, for points drawn over it, before and after. The frames are held out in blocks, see `hold_out_blocks`.

    Args:
        images: The frames, as `find_images` takes them.
        teacher: What `load_teacher` takes.
        output: Folder to write to.
        recipe: How to train; its starts are left out.
        options: How to carry it out.
        checkpoint: The weights to start from, as `build_sam_groupmix` takes them.
        encoder: The encoder that they are for; by default what they say.
        replay_images: Other images, as `find_images` takes them; some are mixed in, so that what was known is kept.
        cache: Folder for the teacher's features; in `output` by default.
        providers: ONNX Runtime's, for a teacher in ONNX.
        image_size: Side in pixels that images are resized to; by default what the weights say.

    Raises:
        GroupMixSamError: one of those that `distill` raises.
    """
    output = Path(output)
    frames = find_images(images)
    measured, own = hold_out_blocks(frames)
    if process_state().is_main_process:
        beside = len(frames) - len(own) - len(measured)
        print(f"frames to train on: {len(own)}; held out in blocks: {len(measured)}; left out beside them: {beside}")
    others = find_images(replay_images) if replay_images is not None else []
    mixed = min(len(others), round(len(own) * GENERAL_SHARE / (1 - GENERAL_SHARE)))
    others = [others[i] for i in np.random.default_rng(recipe.seed).permutation(len(others))[:mixed]]
    models = prepare_models(encoder, checkpoint, teacher, providers, image_size, recipe.seed)
    run = prepare_run(models, measured, [*own, *others], output, recipe.continued(), options, cache=cache)
    before = teacher_iou(models, run.held_out)
    record = train_and_save(run, output, options)
    after = teacher_iou(models, run.held_out)
    found: dict[str, Any] = {"points_a_image": POINTS, "images": len(run.held_out)}
    found |= {"before": summary(before), "after": summary(after), "difference": summary(after - before)}
    if process_state().is_main_process:
        details = found | {"ious_before": before.tolist(), "ious_after": after.tolist()}
        write_beside(output / "teacher_iou.json", lambda part: part.write_text(json.dumps(details), encoding="utf-8"))
        for name in ("before", "after"):
            print(f"IoU with the teacher {name}: {format_interval(found[name])}")
        print(f"difference, frame by frame: {format_interval(found['difference'], '+')}")
        if len(run.held_out) < LEAST:
            print(
                f"frames held out: {len(run.held_out)}, too few to tell whether it has helped; "
                f"of {10 * LEAST} frames {LEAST} are held out, and there is an interval"
            )
    return record | {"teacher_iou": found}


def hold_out_blocks(images: Sequence[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return a tenth of a line's frames, 24 at most, to measure on, and those to train on, each in the order of their names.

    Frames next to each other show nearly the same. So whole blocks are held out, evenly over the line, and the frames beside a
    block, one in a hundred of all and five at most on either side, are in neither part. Of under six frames none is left out.
    Numbers in names count as numbers: frame 10 comes after frame 9.

    Raises:
        InvalidInputError: there is but one frame.
    """
    if len(images) < 2:
        raise InvalidInputError(f"there is only one image, {images[0]}: give two or more, as one is held out.")
    images = sorted(images, key=lambda image: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", str(image))])
    count = max(1, min(MAX_HELD_OUT, len(images) // 10))
    blocks = max(1, min(BLOCKS, count // 3))
    measured: set[int] = set()
    for i in range(blocks):
        size = count * (i + 1) // blocks - count * i // blocks
        first = (2 * i + 1) * len(images) // (2 * blocks) - size // 2
        measured |= set(range(first, first + size))
    gap = max(1, min(MAX_GAP, len(images) // 100)) if len(images) >= 6 else 0
    beside = {i + step for i in measured for step in range(-gap, gap + 1)}
    return [images[i] for i in sorted(measured)], [image for i, image in enumerate(images) if i not in beside | measured]


@torch.no_grad()
def teacher_iou(models: Models, images: Sequence[CachedImage]) -> Any:
    """Return the IoUs of a Sam's masks with the teacher's, images x 16 points drawn over each, always the same.

    Of the three masks that a point may mean, the one with the best predicted IoU counts, for each of the two.
    """
    encoder, grid, decoder = models.sam.image_encoder.eval(), models.grid, FrozenDecoder(models.sam)
    generator = torch.Generator().manual_seed(0)
    ious = []
    for image in tqdm(whole_images(images, grid), total=len(images), desc="teacher_iou", disable=None):
        valid = image["valid"][0]
        student = encoder(image["input"])
        teacher = image["features"].float().permute(0, 3, 1, 2)
        points = draw_points(valid, POINTS, generator, grid.stride)
        ious.append(teacher_mask_iou(student, teacher, valid, decoder, points, models.teacher_decoder))
    return torch.stack(ious).numpy()


def summary(values: Any) -> list[float]:
    """Return the mean of values, images x points, and its 95 % interval by bootstrap over the images; none of under 8."""
    means = values.mean(1)
    if len(means) < LEAST:
        return [float(means.mean())]
    drawn = np.random.default_rng(0).integers(len(means), size=(2000, len(means)))
    return [float(means.mean()), *map(float, np.percentile(means[drawn].mean(1), (2.5, 97.5)))]


def format_interval(figure: list[float], sign: str = "") -> str:
    """Return a mean and, if there is one, its interval as text."""
    mean, *interval = (f"{value:{sign}.3f}" for value in figure)
    return f"{mean} ({' to '.join(interval)})" if interval else mean
