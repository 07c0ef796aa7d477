"""The whole way from images to weights that `build_sam_groupmix` takes."""

import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ..errors import InvalidInputError, MissingExtraError
from ..images import ImageFile, find_images
from ..sam import build_sam_groupmix
from ..weights import load_prompt_and_decoder, open_weights, save_pretrained
from .cache import cache_bytes, cache_features
from .data import CachedImage, Grid
from .decoder import FrozenDecoder
from .plots import plot_log
from .recipe import Recipe
from .run import RunOptions, check_folder, process_state
from .teacher import Teacher, load_teacher
from .trainer import check_run, train_student

__all__ = ["distill"]

MAX_HELD_OUT = 24


def distill(
    images: str | PathLike[str] | Sequence[ImageFile],
    teacher: str | PathLike[str],
    output: str | PathLike[str],
    recipe: Recipe = Recipe(),  # noqa: B008  it is frozen
    options: RunOptions = RunOptions(),  # noqa: B008
    *,
    encoder: str | None = None,
    init_checkpoint: str | PathLike[str] | None = None,
    cache: str | PathLike[str] | None = None,
    use_cache: bool = True,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    image_size: int | None = None,
) -> dict[str, Any]:
    """Distil an encoder from unlabelled images; return the record of the run, which the weights' header has as well.

    Writes into `output`: `weights/` (`model.safetensors`, `config.json` and the card), `loss.png`, and what `train_student`
    writes. A tenth of the images, 24 at most, is held out to measure on.

    Args:
        images: What `find_images` takes, or what it returns.
        teacher: What `load_teacher` takes.
        output: Folder to write to.
        recipe: How to train.
        options: How to carry it out.
        encoder: As `build_sam_groupmix` takes it, of `init_checkpoint`: so "gmf_sam_2282" if there is none.
        init_checkpoint: Weights to start from, as `build_sam_groupmix` takes them; the recipe's own starts are then left out.
        cache: Folder for the teacher's features; in `output` by default.
        use_cache: Whether to keep the teacher's features, which a resized crop forbids. Those held out are kept in any case.
        providers: ONNX Runtime's, for a teacher in ONNX.
        image_size: Side in pixels that images are resized to: that of `init_checkpoint`, else the encoder's own.

    Raises:
        GroupMixSamError: one of those that `find_images`, `load_teacher`, `cache_features` and `train_student` raise.
    """
    found = find_images(images) if isinstance(images, (str, PathLike)) else list(images)
    measured, others = hold_out(found)
    models = prepare_models(encoder, init_checkpoint, teacher, providers, image_size, recipe.seed)
    if init_checkpoint is not None:
        recipe = recipe.continued()
    run = prepare_run(models, measured, others, Path(output), recipe, options, cache=cache, use_cache=use_cache)
    return train_and_save(run, Path(output), options)


class Models(NamedTuple):
    """A Sam to be trained, with the teacher's decoder, or MobileSAM's; the teacher; and the teacher's weights."""

    sam: Sam
    teacher: Teacher
    teacher_weights: dict[str, Tensor]

    @property
    def grid(self) -> Grid:
        return Grid.of(self.sam.image_encoder)


class Prepared(NamedTuple):
    """What `train_and_save` takes: the models, the recipe as it will be, and the images, with those that cannot be used."""

    models: Models
    recipe: Recipe
    training: Sequence[ImageFile] | Sequence[CachedImage]
    held_out: Sequence[CachedImage]
    skipped: Sequence[ImageFile]


def prepare_run(
    models: Models,
    measured: Sequence[ImageFile],
    training: Sequence[ImageFile],
    output: Path,
    recipe: Recipe,
    options: RunOptions,
    *,
    cache: str | PathLike[str] | None,
    use_cache: bool = True,
) -> Prepared:
    """Check what can be checked, then ask the teacher, which may take hours, about the images."""
    sam, teacher, _ = models
    grid = models.grid
    recipe = share_batches(recipe, options)
    use_cache = use_cache and recipe.augmentation == "crop"
    check_run(sam.image_encoder, training, recipe, options)
    if teacher.image_size not in (None, grid.teacher_size):
        raise InvalidInputError(
            f"the image size is {grid.image_size}, for which the teacher sees images at {grid.teacher_size}, and it takes "
            f"{teacher.image_size} alone: change either."
        )
    check_folder(output, resume=options.resume)
    folder = Path(cache) if cache is not None else output / "cache"
    announce_cache([*measured, *training], teacher, folder if use_cache else None, grid)
    held_out, skipped = cache_features(measured, teacher, folder, grid)
    if not use_cache:
        return Prepared(models, recipe, training, held_out, skipped)
    cached, unusable = cache_features(training, teacher, folder, grid)
    # The same image may come twice.
    others = [image for image in cached if image not in set(held_out)]
    return Prepared(models, recipe, others, held_out, skipped + unusable)


def announce_cache(images: Sequence[ImageFile], teacher: Teacher, folder: Path | None, grid: Grid) -> None:
    """Say, before it is written, how large the cache of the teacher's features may become."""
    if process_state().is_main_process:
        size = cache_bytes(images, teacher, grid) / 1e9
        where = "no cache" if folder is None else f"what the teacher says of them goes to {folder}, up to {size:.1f} GB"
        print(f"{len(images)} images; {where}")


def share_batches(recipe: Recipe, options: RunOptions) -> Recipe:
    """Return the recipe with batches that all processes, and the parts that they take them in, share; say what was raised."""
    parts = process_state().num_processes * options.accumulate
    shared = recipe.in_parts(parts)
    if shared != recipe and process_state().is_main_process:
        sizes = [", ".join(str(phase.batch_size) for phase in r.phases) for r in (recipe, shared)]
        print(f"batches of {sizes[0]} are raised to {sizes[1]}, which {parts} parts share evenly")
    return shared


def prepare_models(
    encoder: str | None,
    init_checkpoint: str | PathLike[str] | None,
    teacher: str | PathLike[str],
    providers: Sequence[str],
    image_size: int | None,
    seed: int,
) -> Models:
    """Build and load the models."""
    with torch.random.fork_rng(devices=[]):  # a run that is resumed begins with the same weights, as do all processes
        torch.manual_seed(seed)
        sam = build_sam_groupmix(init_checkpoint, encoder=encoder, image_size=image_size)
    source, weights = load_teacher(teacher, providers)
    decoder = weights or open_weights("default").tensors
    load_prompt_and_decoder(sam, decoder)
    return Models(sam, source, weights)


def hold_out(images: Sequence[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return a tenth of the images, 24 at most, to measure on, and the others.

    Raises:
        InvalidInputError: there is but one.
    """
    if len(images) < 2:
        raise InvalidInputError(f"there is only one image, {images[0]}: give two or more, as one is held out.")
    count = max(1, min(MAX_HELD_OUT, len(images) // 10))
    order = np.random.default_rng(0).permutation(len(images))
    return [images[i] for i in order[:count]], [images[i] for i in sorted(order[count:])]


def train_and_save(run: Prepared, output: Path, options: RunOptions) -> dict[str, Any]:
    """Train a Sam's encoder, put it into the Sam and write the whole; return the record of the run."""
    sam = run.models.sam
    average, record = train_student(
        sam.image_encoder,
        run.models.teacher,
        run.training,
        run.held_out,
        output,
        run.recipe,
        options,
        teacher_weights=run.models.teacher_weights,
        decoder=FrozenDecoder(sam),
    )
    record["skipped"] = sorted({*record["skipped"], *map(str, run.skipped)})
    sam.image_encoder.load_state_dict(average.state_dict())
    sam.to("cpu").eval()
    if process_state().is_main_process:
        for name in record["skipped"]:
            print(f"skipped, it cannot be read or is too narrow: {name}", file=sys.stderr)
        save_pretrained(sam, output / "weights", training=record)
        print(f"R2 {record['r2']:.4f} on {len(run.held_out)} held-out images; {len(record['skipped'])} skipped")
        print(f"wrote {output / 'weights'}: use it as --checkpoint; the features are drawn in {output / 'features.png'}")
        try:
            plot_log(output / "log.csv", output / "loss.png")
        except MissingExtraError as e:
            print(f"no plot of the loss: {e}", file=sys.stderr)
    return record
