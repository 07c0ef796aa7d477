"""Adapt trained weights to the images of one's own line: to the teacher's features of them, to labels of some, or to both."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from segment_anything.modeling import Sam
from tqdm import tqdm

from ..annotations import read_annotations
from ..errors import InvalidInputError
from ..files import write_beside
from ..images import ImageFile, evenly_spaced, find_images
from ..inference.drift import MIN_FRAMES, fit_drift
from ..inference.model import model_hash
from ..sam import build_sam_groupmix
from ..weights import encoder_name
from .data import CachedImage, Grid, whole_images
from .decoder import FrozenDecoder
from .decoder_stage import train_decoder
from .labels import (
    PROMPT_KINDS,
    Frame,
    LabelAsker,
    Labelled,
    choose_labelled,
    encode_frames,
    label_ious,
    open_frames,
    recalibrate,
)
from .losses import draw_points, teacher_mask_iou
from .pipeline import (
    DECODER_FOLDER,
    MAX_HELD_OUT,
    Models,
    check_count,
    prepare_models,
    prepare_run,
    save_result,
    train_models,
    try_plot,
)
from .plots import LABEL_CURVES
from .recipe import DecoderRecipe, Phase, Recipe, save_recipe
from .run import RunOptions, check_folder, process_state

__all__ = ["ADAPT", "adapt", "teacher_iou"]

# A low rate and no new fit of the neck, so that what was known is kept; and whole frames, as crops undo within a minute more of
# what trained weights know of whole ones than they teach (docs/research/2026-11-25-adapt-whole-frames.md).
ADAPT = Recipe(
    minutes=20.0,
    phases=(Phase(1.0, 0, 1),),
    lr=2e-4,
    ridge_finish=False,
    # 1e-3 ruins the masks, and 2e-4 is no better (docs/research/2026-11-28-adapt-labels.md).
    decoder=DecoderRecipe(
        minutes=20.0, batch_size=1, points=2, corrections=0.15, lr=1e-4, lowest_lr=5e-6, warmup=0.1, pull=5.0, ema_decay=0.98
    ),
).continued()
POINTS = 16  # of each held-out image
MIN_FRAMES_FOR_INTERVAL = 3
BOOTSTRAP_FROM = 8  # frames; of fewer the interval is Student's
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)  # the 97.5 % points for 1 to 7 degrees of freedom
GENERAL_SHARE = 0.25  # of the training images, where a general set is given
BLOCKS = 4  # that frames are held out in
MAX_GAP = 5  # frames between a block and the training frames
MAX_HELD_OUT_LABELLED = 40
MAX_DRIFT = 100  # frames that later ones are compared with
TURNS = (0, 4, 1, 7, 2, 6, 3, 5)  # of labelled images, as `turn_pixels` takes them; the first are the most different
MAX_VIEWS = 64  # of the labelled images, each turn being one
MAX_REPLAY = 100  # images of which the starting model's own masks are kept


def adapt(
    images: str | PathLike[str],
    output: str | PathLike[str],
    recipe: Recipe = ADAPT,
    options: RunOptions = RunOptions(),  # noqa: B008  it is frozen
    *,
    teacher: str | PathLike[str] | None = None,
    labels: str | PathLike[str] | None = None,
    prompt_kind: str = "both",
    checkpoint: str | PathLike[str] = "default",
    encoder: str | None = None,
    replay_images: str | PathLike[str] | None = None,
    cache: str | PathLike[str] | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    image_size: int | None = None,
) -> dict[str, Any]:
    """Train on from trained weights on one's own frames; return the record, with the IoU before and after.

    With a teacher, the encoder learns its features of all frames, labelled or not. With labels, the mask decoder then learns
    the masks of the labelled frames. Writes into `output` what `distill` writes, and each IoU on the held-out frames before and
    after: `teacher_iou.json`, with the teacher's masks for points drawn over a frame, and `label_iou_box.json` and
    `label_iou_point.json`, with the labels. The frames are held out in blocks.

    Args:
        images: The frames, as `find_images` takes them.
        output: Folder to write to.
        recipe: How to train the encoder, and in its `decoder`, the mask decoder; its starts are left out.
        options: How to carry it out.
        teacher: What `load_teacher` takes.
        labels: Masks of some of the frames, as `read_annotations` takes them.
        prompt_kind: What the decoder is trained for: "box", "point" or "both".
        checkpoint: The weights to start from, as `build_sam_groupmix` takes them.
        encoder: The encoder that they are for; by default what they say.
        replay_images: Other images, as `find_images` takes them; some are mixed in, so that what was known is kept.
        cache: Folder for features; in `output` by default.
        providers: ONNX Runtime's, for a teacher in ONNX.
        image_size: Side in pixels that images are resized to; by default what the weights say.

    Raises:
        GroupMixSamError: one of those that `distill` and `read_annotations` raise.
    """
    if teacher is None and labels is None:
        raise InvalidInputError("there is neither a teacher nor labels to learn from: give --teacher, --labels or both.")
    if prompt_kind not in PROMPT_KINDS:
        raise InvalidInputError(f"the prompt kind is {prompt_kind!r}: use {', '.join(map(repr, PROMPT_KINDS))}.")
    output, folder = Path(output), Path(cache) if cache is not None else Path(output) / "cache"
    frames = in_order(find_images(images))
    others = find_images(replay_images) if replay_images is not None else []
    decoder = recipe.decoder or ADAPT.decoder
    recipe = replace(recipe.continued(), decoder=None)
    record: dict[str, Any] = {}
    apart: set[ImageFile] = set()
    if teacher is None:
        sam = build_sam_groupmix(checkpoint, encoder=encoder, image_size=image_size)
    else:
        models = prepare_models(encoder, checkpoint, teacher, providers, image_size, recipe.seed)
        sam = models.sam
    if labels is not None:
        for run in (output, output / DECODER_FOLDER):
            check_folder(run, resume=options.resume)
        matched = read_annotations(labels, frames)
        labelled, left_out = choose_labelled(matched, Grid.of(sam.image_encoder))
        training, held_out = hold_out_labelled(labelled, frames)
        apart = {entry.frame.image for entry in labelled} - {entry.frame.image for entry in training}
        say(*left_out, described(training, held_out, len(labelled)))
        if not training or not held_out:
            raise InvalidInputError(
                f"{labels} has masks to learn in {len(labelled)} of the images, and one is held out: label 20, or 2 at least"
                + "".join(f"; {line}" for line in left_out)
                + "."
            )
    if teacher is not None:
        record = adapt_encoder(models, frames, apart, others, output, folder, recipe, options)
    if labels is not None:
        replay, _ = open_frames(evenly_spaced(others, MAX_REPLAY) if others else [], Grid.of(sam.image_encoder))
        recipe = replace(recipe, decoder=decoder)
        stage = adapt_decoder(sam, training, held_out, list(replay.values()), output, folder, recipe, options, prompt_kind)
        count = sum(len(entry.instances) for entry in training)
        about = f"{len(training)} labelled images with {count} instances, from {Path(labels).name}"
        record = {"adapted_to": about, "encoder": encoder_name(sam), "image_size": sam.image_encoder.img_size} | record | stage
    save_result(sam, output, record)
    save_drift(sam, frames, output, folder)
    return record


def save_drift(sam: Sam, images: Sequence[ImageFile], output: Path, cache: Path) -> None:
    """Write, beside the weights, what tells whether later frames look like these."""
    frames, _ = open_frames(evenly_spaced(images, MAX_DRIFT), Grid.of(sam.image_encoder))
    if len(frames) < MIN_FRAMES:
        say(f"too few frames for `stream --drift`: {len(frames)} of {MIN_FRAMES}")
        return
    encoded = encode_frames(sam.image_encoder, list(frames.values()), cache)
    sam.to("cpu")
    if process_state().is_main_process:
        drift = fit_drift([frame.read("cpu")[..., : frame.cells[0], : frame.cells[1]] for frame in encoded])
        drift.save(output / "weights", model_hash(sam))


def say(*lines: str) -> None:
    """Print lines, once of all processes."""
    if process_state().is_main_process:
        for line in lines:
            print(line)


def described(training: Sequence[Labelled], held_out: Sequence[Labelled], count: int) -> str:
    """Return a sentence of how many labels there are."""
    numbers = [f"{len(part)} with {sum(len(entry.instances) for entry in part)} masks" for part in (training, held_out)]
    return (
        f"labelled images to train on: {numbers[0]}; held out in blocks: {numbers[1]}; left out beside them: "
        f"{count - len(training) - len(held_out)}"
    )


def adapt_encoder(
    models: Models,
    frames: Sequence[ImageFile],
    apart: Collection[ImageFile],
    others: Sequence[ImageFile],
    output: Path,
    cache: Path,
    recipe: Recipe,
    options: RunOptions,
) -> dict[str, Any]:
    """Train a Sam's encoder on the teacher's features of frames, and report; return the record.

    Args:
        models: The Sam and the teacher.
        frames: In their order.
        apart: Those that are not to be trained on.
        others: Some are mixed in.
        output: Folder of the run.
        cache: Folder for the features.
        recipe: How to train, without a decoder.
        options: How to carry it out.
    """
    measured, own = hold_out_blocks(frames)
    say(
        f"frames to train on: {len(own)}; held out in blocks: {len(measured)}; left out beside them: "
        f"{len(frames) - len(own) - len(measured)}"
    )
    own = [image for image in own if image not in apart]
    mixed = min(len(others), round(len(own) * GENERAL_SHARE / (1 - GENERAL_SHARE)))
    drawn = np.random.default_rng(recipe.seed).permutation(len(others))[:mixed]
    training = [*own, *(others[i] for i in drawn)]
    run = prepare_run(models, measured, training, output, recipe, options, cache=cache)
    before = teacher_iou(models, run.held_out)
    record = train_models(run, output, options)
    after = teacher_iou(models, run.held_out)
    found = report("the teacher", before, after, output / "teacher_iou.json", {"points_per_image": POINTS})
    return record | {"teacher_iou": found}


def adapt_decoder(
    sam: Sam,
    training: Sequence[Labelled],
    held_out: Sequence[Labelled],
    replay: Sequence[Frame],
    output: Path,
    cache: Path,
    recipe: Recipe,
    options: RunOptions,
    prompt_kind: str,
) -> dict[str, Any]:
    """Train a Sam's mask decoder on labels, fit its predicted IoUs to the held-out ones, and report; return the record.

    Args:
        sam: It is changed.
        training: Frames to train on, with labels.
        held_out: Frames to measure on, and to choose the best check by.
        replay: Frames of other objects, whose masks are to stay as they are.
        output: Folder of the run.
        cache: Folder for the features.
        recipe: How to train; its `decoder`.
        options: How to carry it out.
        prompt_kind: A key of `PROMPT_KINDS`.
    """
    folder = output / DECODER_FOLDER
    how = cast(DecoderRecipe, recipe.decoder)
    turns = TURNS[: max(1, MAX_VIEWS // len(training))]
    training = [entry.turned(turn) for turn in turns for entry in training]
    labelled = [*training, *held_out]
    frames = encode_frames(sam.image_encoder, [*(entry.frame for entry in labelled), *replay], cache)
    sam.to("cpu")
    labelled = [entry._replace(frame=frame) for entry, frame in zip(labelled, frames, strict=False)]
    training, held_out = labelled[: len(training)], labelled[len(training) :]
    asker = LabelAsker(sam, training, held_out, frames[len(labelled) :], how, recipe.seed, prompt_kind)
    before = [label_ious(asker.start, entry) for entry in held_out]
    stage = train_decoder(sam, asker, folder, recipe, options)
    decoder, encoder = FrozenDecoder(sam), sam.image_encoder.eval() if how.encoder_rate else None
    after = [label_ious(decoder, entry, encoder=encoder) for entry in held_out]
    stage["predicted_iou"] = recalibrate(sam, after)
    found = {}
    for kind in ("box", "point"):
        earlier, later = ([ious[kind] for ious in part] for part in (before, after))
        found[kind] = report(f"the labels by {kind}", earlier, later, output / f"label_iou_{kind}.json", {})
    if process_state().is_main_process:
        save_recipe(recipe, output / "recipe.yaml")
        try_plot(folder / "log.csv", folder / "loss.png", LABEL_CURVES)
    return {"decoder": stage, "label_iou": found}


def in_order(images: Sequence[ImageFile]) -> list[ImageFile]:
    """Return images in the order of their names, in which numbers count as numbers: frame 10 comes after frame 9."""
    return sorted(images, key=lambda image: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", str(image))])


def hold_out_blocks(images: Sequence[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return a tenth of a line's frames, 24 at most, to measure on, and those to train on, each in the order of their names.

    Frames next to each other show nearly the same. So whole blocks of three or more are held out, evenly over the line, and
    the frames beside a block, one in a hundred of all and five at most on either side, are in neither part. Of under six frames
    none is left out.

    Raises:
        InvalidInputError: there is but one frame, or none.
    """
    check_count(images)
    images = in_order(images)
    measured = spread_blocks(len(images), max(1, min(MAX_HELD_OUT, len(images) // 10)), 3)
    gap = max(1, min(MAX_GAP, len(images) // 100)) if len(images) >= 6 else 0
    beside = {i + step for i in measured for step in range(-gap, gap + 1)}
    return [images[i] for i in sorted(measured)], [image for i, image in enumerate(images) if i not in beside]


def hold_out_labelled(labelled: Sequence[Labelled], frames: Sequence[ImageFile]) -> tuple[list[Labelled], list[Labelled]]:
    """Return the labelled frames to train on, and a fifth, 40 at most, to measure on, in blocks of two or more.

    The blocks lie where they hold about a fifth of the masks. Those frames are left out that are beside a held-out one in the
    order of all frames: one in fifty, five at most on either side.
    """
    if len(labelled) < 2:
        return list(labelled), []
    places = {image: i for i, image in enumerate(in_order(frames))}
    labelled = sorted(labelled, key=lambda entry: places[entry.frame.image])
    count = max(1, min(MAX_HELD_OUT_LABELLED, len(labelled) // 5))
    middle = spread_blocks(len(labelled), count, 2)
    shifts = sorted(range(-min(middle), len(labelled) - max(middle)), key=abs)
    masks = [len(entry.instances) for entry in labelled]
    wanted = sum(masks) * count / len(labelled)
    shift = min(shifts, key=lambda shift: abs(sum(masks[i + shift] for i in middle) - wanted))
    measured = {i + shift for i in middle}
    gap = min(MAX_GAP, len(frames) // 50)
    held_out = [labelled[i] for i in sorted(measured)]
    near = {places[entry.frame.image] + step for entry in held_out for step in range(-gap, gap + 1)}
    return [entry for entry in labelled if places[entry.frame.image] not in near], held_out


def spread_blocks(total: int, count: int, size: int) -> set[int]:
    """Return `count` numbers under `total`, in up to four blocks of `size` or more that lie evenly."""
    blocks = max(1, min(BLOCKS, count // size))
    chosen: set[int] = set()
    for i in range(blocks):
        length = count * (i + 1) // blocks - count * i // blocks
        first = (2 * i + 1) * total // (2 * blocks) - length // 2
        chosen |= set(range(first, first + length))
    return chosen


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


def report(what: str, before: Sequence[Any], after: Sequence[Any], path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Print the IoUs with something before and after, and write them; return their means with intervals.

    Args:
        what: What they are with.
        before: The IoUs of each held-out image.
        after: The same.
        path: The JSON file to write.
        facts: Further values for the record.
    """
    differences = [b - a for a, b in zip(before, after, strict=True)]
    found: dict[str, Any] = {**facts, "images": len(before)}
    found |= {"before": summary(before), "after": summary(after), "difference": summary(differences)}
    details = found | {
        f"ious_{name}": [ious.tolist() for ious in part] for name, part in (("before", before), ("after", after))
    }
    if process_state().is_main_process:
        write_beside(path, lambda part: part.write_text(json.dumps(details), encoding="utf-8"))
    say(*(f"IoU with {what} {name}: {format_interval(found[name])}" for name in ("before", "after")))
    say(f"difference, frame by frame: {format_interval(found['difference'], '+')}")
    if len(before) < MIN_FRAMES_FOR_INTERVAL:
        say(f"frames held out: {len(before)}, too few for an interval: give more")
    return found


def summary(values: Sequence[Any]) -> list[float]:
    """Return the mean over images of each image's mean, and its 95 % interval; none of under 3 images.

    From 8 images on it is by bootstrap over the images, and else Student's.
    """
    means = np.array([np.mean(ious) for ious in values])
    mean = float(means.mean())
    if len(means) < MIN_FRAMES_FOR_INTERVAL:
        return [mean]
    if len(means) < BOOTSTRAP_FROM:
        half = STUDENT[len(means) - 2] * float(means.std(ddof=1)) / len(means) ** 0.5
        return [mean, mean - half, mean + half]
    drawn = np.random.default_rng(0).integers(len(means), size=(2000, len(means)))
    return [mean, *map(float, np.percentile(means[drawn].mean(1), (2.5, 97.5)))]


def format_interval(figure: Sequence[float], sign: str = "") -> str:
    """Return a mean and, if there is one, its interval as text."""
    mean, *interval = (f"{value:{sign}.3f}" for value in figure)
    return f"{mean} ({' to '.join(interval)})" if interval else mean
