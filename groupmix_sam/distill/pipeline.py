"""The whole way from images to weights that `build_sam_groupmix` takes."""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ..errors import ImageReadError, InvalidInputError, MissingExtraError
from ..images import ImageFile, find_images
from ..sam import build_sam_groupmix
from ..weights import load_prompt_and_decoder, open_weights, save_pretrained
from .cache import UnusableImagesError, cache_bytes, cache_features
from .data import CachedImage, Grid
from .decoder import FrozenDecoder
from .decoder_stage import EncodedImage, InputImage, TeacherAsker, encode_images, input_images, train_decoder
from .plots import DECODER_CURVES, FEATURE_CURVES, Curves, plot_log
from .recipe import DecoderRecipe, Recipe, save_recipe
from .run import RunOptions, check_folder, describe_run, process_state
from .teacher import Teacher, load_teacher
from .trainer import check_run, r2_score, train_student

__all__ = ["distill"]

MAX_HELD_OUT = 24
DECODER_FOLDER = "decoder"  # of a run: what the decoder stage writes


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
    """Distil an encoder, its decoder or both from unlabelled images; return the record, which the weights' header has as well.

    Writes into `output`: `weights/` (`model.safetensors`, `config.json` and the card), `loss.png`, what `train_student` writes,
    and in `decoder/` what `train_decoder` writes. A tenth of the images, 24 at most, is held out to measure on.

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
    """A Sam to be trained; the teacher; the teacher's weights; and its decoder, or MobileSAM's, to which masks are compared."""

    sam: Sam
    teacher: Teacher
    teacher_weights: dict[str, Tensor]
    teacher_decoder: FrozenDecoder

    @property
    def grid(self) -> Grid:
        return Grid.of(self.sam.image_encoder)


class Prepared(NamedTuple):
    """What `train_and_save` takes: the models, the recipe as it will be, and the images, with those that cannot be used."""

    models: Models
    recipe: Recipe
    cache: Path
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
    teacher, grid = models.teacher, models.grid
    recipe = share_batches(recipe, options)
    use_cache = use_cache and recipe.augmentation == "crop"
    if recipe.decoder is not None and not use_cache:
        raise InvalidInputError("the decoder is trained on cached features: leave out --no-cache and resized crops.")
    check_run(models.sam.image_encoder, training, recipe, options)
    if teacher.image_size not in (None, grid.teacher_size):
        raise InvalidInputError(
            f"the image size is {grid.image_size}, for which the teacher sees images at {grid.teacher_size}, and it takes "
            f"{teacher.image_size} alone: change either."
        )
    check_folder(output, resume=options.resume)
    if recipe.decoder is not None:
        check_folder(output / DECODER_FOLDER, resume=options.resume)
    folder = Path(cache) if cache is not None else output / "cache"
    announce_cache([*measured, *training], teacher, folder if use_cache else None, grid)
    training = without_copies(training, measured)
    if not training:
        raise InvalidInputError("all images are copies of those that are held out to measure on: give different ones.")
    held_out, skipped = cache_held_out(measured, training, teacher, folder, grid)
    if not use_cache:
        return Prepared(models, recipe, folder, training, held_out, skipped)
    cached, unusable = cache_features(training, teacher, folder, grid)
    return Prepared(models, recipe, folder, cached, held_out, skipped + unusable)


def cache_held_out(
    measured: Sequence[ImageFile], training: list[ImageFile], teacher: Teacher, folder: Path, grid: Grid
) -> tuple[list[CachedImage], list[ImageFile]]:
    """Cache the images to measure on; where none can be used, take the first of `training`, without its copies, that can.

    Return them, and those that cannot be used.
    """
    skipped: list[ImageFile] = []
    while True:
        try:
            held_out, unusable = cache_features(measured, teacher, folder, grid)
        except UnusableImagesError:
            if len(training) < 2:
                raise
            skipped += measured
            measured = [training[0]]
            training[:] = without_copies(training[1:], measured)
        else:
            return held_out, skipped + unusable


def without_copies(images: Sequence[ImageFile], of: Sequence[ImageFile]) -> list[ImageFile]:
    """Return the images without those that have the same content as one of others. Few are read: those of the same size."""
    contents: defaultdict[int, set[bytes]] = defaultdict(set)

    def digest(image: ImageFile) -> bytes:
        return hashlib.sha256(image.read_bytes()).digest()

    for image in of:
        with suppress(ImageReadError):
            contents[file_size(image)].add(digest(image))

    def is_copy(image: ImageFile) -> bool:
        try:
            return file_size(image) in contents and digest(image) in contents[file_size(image)]
        except ImageReadError:  # named where it is used
            return False

    return [image for image in images if not is_copy(image)]


def file_size(image: ImageFile) -> int:
    """Return the bytes of an encoded image; -1 if there is no such file."""
    try:
        return image.size if image.size >= 0 else image.path.stat().st_size
    except (OSError, ValueError):  # a ValueError of a name that no file can have
        return -1


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
    """Build and load the models. Weights to start from keep their own decoder; a new encoder gets the teacher's."""
    with torch.random.fork_rng(devices=[]):  # a run that is resumed begins with the same weights, as do all processes
        torch.manual_seed(seed)
        sam = build_sam_groupmix(init_checkpoint, encoder=encoder, image_size=image_size)
    source, weights = load_teacher(teacher, providers)
    decoder = weights or open_weights("default").tensors
    own = {name: value.clone() for name, value in sam.state_dict().items() if not name.startswith("image_encoder.")}
    load_prompt_and_decoder(sam, decoder)
    teacher_decoder = FrozenDecoder(sam)
    if init_checkpoint is not None:
        load_prompt_and_decoder(sam, own)
    return Models(sam, source, weights, teacher_decoder)


def check_count(images: Sequence[ImageFile]) -> None:
    """Raise InvalidInputError unless there are two images or more, one of which can be held out."""
    if len(images) < 2:
        there = f"there is only one image, {images[0]}" if images else "there is no image"
        raise InvalidInputError(f"{there}: give two or more, as one is held out.")


def hold_out(images: Sequence[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return a tenth of the images, 24 at most, to measure on, and the others.

    Raises:
        InvalidInputError: there is but one, or none.
    """
    check_count(images)
    count = max(1, min(MAX_HELD_OUT, len(images) // 10))
    order = np.random.default_rng(0).permutation(len(images))
    return [images[i] for i in order[:count]], [images[i] for i in sorted(order[count:])]


def train_and_save(run: Prepared, output: Path, options: RunOptions) -> dict[str, Any]:
    """Train a Sam's encoder, its decoder or both, and write the whole; return the record of the run."""
    record = train_models(run, output, options)
    save_result(run.models.sam, output, record)
    return record


def save_result(sam: Sam, output: Path, record: dict[str, Any]) -> None:
    """Write a run's weights with its record."""
    if process_state().is_main_process:
        save_pretrained(sam, output / "weights", training=record)
        print(f"wrote {output / 'weights'}: use it as --checkpoint")


def train_models(run: Prepared, output: Path, options: RunOptions) -> dict[str, Any]:
    """Train a Sam's encoder, its decoder or both; return the record of the run."""
    main = process_state().is_main_process
    sam, recipe = run.models.sam, run.recipe
    record = train_encoder(run, output, options) if recipe.trains_encoder else encoder_record(run)
    record["skipped"] = sorted({*record["skipped"], *map(str, run.skipped)})
    sam.to("cpu").eval()
    if main:
        for name in record["skipped"]:
            print(f"skipped, it cannot be read or is too narrow: {name}", file=sys.stderr)
        print(f"R2 {record['r2']:.4f} on {len(run.held_out)} held-out images; {len(record['skipped'])} skipped")
        if recipe.trains_encoder:
            print(f"the features are drawn in {output / 'features.png'}")
            try_plot(output / "log.csv", output / "loss.png", FEATURE_CURVES)
    if recipe.decoder is not None:
        record["decoder"] = found = train_on_masks(run, output / DECODER_FOLDER, options)
        if recipe.decoder.encoder_rate:
            sam.to("cpu").eval()
            with torch.no_grad():
                record["r2"] = r2_score(sam.image_encoder, run.held_out, run.models.grid)
            if main:
                print(f"R2 {record['r2']:.4f} after the encoder and the decoder learnt together")
        if main:
            save_recipe(recipe, output / "recipe.yaml")
            for name, kind in (("box_iou", "box"), ("point_iou", "point")):
                print(f"IoU with the teacher by {kind}: {found['before'][name]:.3f} before, {found['after'][name]:.3f} after")
            try_plot(output / DECODER_FOLDER / "log.csv", output / DECODER_FOLDER / "loss.png", DECODER_CURVES)
    return record


def train_encoder(run: Prepared, output: Path, options: RunOptions) -> dict[str, Any]:
    """Train a Sam's encoder on the teacher's features, and put the average into the Sam; return the record of the stage."""
    encoder = run.models.sam.image_encoder
    average, record = train_student(
        encoder,
        run.models.teacher,
        run.training,
        run.held_out,
        output,
        run.recipe,
        options,
        teacher_weights=run.models.teacher_weights,
        decoder=run.models.teacher_decoder,
    )
    encoder.load_state_dict(average.state_dict())
    return record


def encoder_record(run: Prepared) -> dict[str, Any]:
    """Return what is said of an encoder that is left as it is, as `train_encoder` says it of one that is trained."""
    encoder = run.models.sam.image_encoder
    description = describe_run(encoder, run.models.teacher, run.training, run.held_out, run.recipe)
    with torch.no_grad():
        return description | {"r2": r2_score(encoder, run.held_out, run.models.grid), "skipped": []}


def train_on_masks(run: Prepared, folder: Path, options: RunOptions) -> dict[str, Any]:
    """Train a Sam's decoder on the teacher's masks, on cached features or with its encoder; return the record."""
    encoder, grid = run.models.sam.image_encoder, run.models.grid
    how = cast(DecoderRecipe, run.recipe.decoder)

    def prepare(images: Sequence[Any]) -> Sequence[EncodedImage] | Sequence[InputImage]:
        return input_images(images, grid) if how.encoder_rate else encode_images(encoder, images, run.cache, grid)

    training, held_out = prepare(run.training), prepare(run.held_out)
    encoder.to("cpu")
    asker = TeacherAsker(run.models.teacher_decoder, training, held_out, how, run.recipe.seed)
    return train_decoder(run.models.sam, asker, folder, run.recipe, options)


def try_plot(log: Path, output: Path, curves: Curves) -> None:
    """Plot a log, or say why not."""
    try:
        plot_log(log, output, curves)
    except MissingExtraError as e:
        print(f"no plot of the loss: {e}", file=sys.stderr)
