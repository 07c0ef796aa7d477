"""Recipes: how to distil, as a dataclass, a YAML file or one of the presets."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from ..encoders.config import STRIDE
from ..errors import InvalidInputError, UnknownNameError
from ..files import write_beside

__all__ = ["JOINT_RATE", "PRESETS", "DecoderRecipe", "Phase", "Recipe", "load_recipe", "recipe_from_dict", "save_recipe"]


JOINT_RATE = 0.3  # the encoder's learning rate, as a share of the decoder's, where both learn the teacher's masks


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Args:
        share: Of the run's pixels.
        crop: Side of the square crops in pixels of the student's input, a multiple of 16; 0 for whole images, padded as at
            inference.
        batch_size: Crops or images a step, over all processes.
        target: "features", or "masks": through the frozen mask decoder as well.
    """

    share: float = 1.0
    crop: int = 0
    batch_size: int = 1
    target: str = "features"


@dataclass(frozen=True)
class DecoderRecipe:
    """How the mask decoder learns masks: from the features of an encoder that is frozen, or together with it.

    Args:
        epochs: How often each image is seen.
        minutes: Sets `epochs` by what a step takes on this machine; the features' time and the checks come on top.
        batch_size: Images a step, over all processes.
        points: Prompts by a single point of each image, from which the masks for one instance and for its parts are learnt.
        instances: The teacher's masks of each image that are asked for otherwise: by a box, by a box and a point, or by points.
        corrections: Share of those that are corrected by a click where the mask is wrong.
        lr: Highest learning rate, of the mask decoder. The head that predicts IoUs learns three times as fast.
        encoder_rate: Learning rate of the image encoder, as a share of the decoder's; 0 leaves it as it is.
        lowest_lr: What it falls to by a cosine.
        warmup: Share of the stage in which the learning rate rises.
        weight_decay: Of matrices and kernels.
        pull: Of all weights towards those that the stage began with, in the same units as `weight_decay`.
        clip_norm: Largest norm of the gradient; 0 for any.
        ema_decay: Of the average of the weights; 0 for no average.
        blend: Share of that average in the result. The rest is the weights that the stage began with (WiSE-FT, arXiv
            2109.01903). Labels that are held out choose it themselves.
    """

    epochs: float = 6.0
    minutes: float | None = None
    batch_size: int = 2
    points: int = 4
    instances: int = 4
    corrections: float = 0.7
    lr: float = 1e-4
    encoder_rate: float = 0.0
    lowest_lr: float = 1e-5
    warmup: float = 0.02
    weight_decay: float = 1e-4
    pull: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    # Half and half is better with labels than either (docs/research/2026-11-28-decoder-of-instances.md).
    blend: float = 0.5

    def __post_init__(self) -> None:
        _numbers(self, "decoder.", positive=("epochs", "minutes", "lr"), shares=("warmup", "ema_decay"))
        _numbers(self, "decoder.", least_0=("encoder_rate", "lowest_lr", "weight_decay", "pull", "clip_norm"))
        for name in ("corrections", "blend"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise InvalidInputError(f"decoder.{name} is {value!r}: give a number from 0 to 1.")
        for name in ("batch_size", "points", "instances"):
            if not _is_count(getattr(self, name)):
                raise InvalidInputError(f"decoder.{name} is {getattr(self, name)!r}: give 1 or more.")
        if self.lowest_lr > self.lr:
            raise InvalidInputError(f"decoder.lowest_lr is {self.lowest_lr}: give one that is not above lr, {self.lr}.")


@dataclass(frozen=True)
class Recipe:
    """How to distil. The weights that ship began with the defaults and went on otherwise, as their card says.

    Args:
        epochs: How often each image's pixels are seen: crops that cover half of an image are half a pass over it. 0 leaves the
            encoder as it is, for a decoder to be trained.
        minutes: Sets `epochs` by what a step takes on this machine; the teacher's time and the checks come on top.
        phases: What is trained on, one after the other.
        augmentation: "crop", cut from the resized image so that the teacher's features of the whole can be cut alike and
            cached; "resized_crop", torchvision's RandomResizedCrop as in NanoSAM, which the teacher must see each time anew.
        crops_per_image: How many crops an image gives each time it is read. More than one pays without a cache.
        loss: On the features: "mse", in units of the teacher's variance, or "huber", as it is.
        optimizer: "adamw" or "adam".
        lr: Highest learning rate.
        schedule: "cosine", down to 0, or "constant".
        warmup: Share of the run in which the learning rate rises.
        weight_decay: Of matrices and kernels.
        clip_norm: Largest norm of the gradient; 0 for any.
        ema_decay: Of the average of the weights, which is what a run returns; 0 for no average.
        hint_weight: Of the losses on the teacher's maps on the way (FitNets, arXiv 1412.6550), at the start; it falls to 0.
        ridge_start: Start a linear neck at the ridge regression of the teacher's features on the backbone's, and SAM's at
            their mean and deviation.
        ridge_finish: Fit the neck so once more, on whole images, after the last phase on features.
        teacher_blocks: Start the third stage from the MLPs and local convolutions of MobileSAM's third stage.
        seed: Of the order, the crops and the prompts.
        decoder: How the mask decoder learns after the encoder; None if it does not.
    """

    epochs: float = 6.0
    minutes: float | None = None
    phases: tuple[Phase, ...] = field(default=(Phase(0.65, 256, 8), Phase(0.25, 512, 2), Phase(0.10, 0, 1)))
    augmentation: str = "crop"
    crops_per_image: int = 1
    loss: str = "mse"
    optimizer: str = "adamw"
    lr: float = 2e-3
    schedule: str = "cosine"
    warmup: float = 0.02
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    hint_weight: float = 0.5
    ridge_start: bool = True
    ridge_finish: bool = True
    teacher_blocks: bool = True
    seed: int = 0
    decoder: DecoderRecipe | None = None

    def __post_init__(self) -> None:
        least_0 = ("weight_decay", "clip_norm", "hint_weight")
        time = ("epochs", "minutes")
        _numbers(self, "", positive=("lr",) if self.decoder else ("lr", *time), shares=("warmup", "ema_decay"))
        _numbers(self, "", least_0=(*least_0, *time) if self.decoder else least_0)
        for name in ("ridge_start", "ridge_finish", "teacher_blocks"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}: give true or false.")
        _choice("augmentation", self.augmentation, ("crop", "resized_crop"))
        _choice("loss", self.loss, ("mse", "huber"))
        _choice("optimizer", self.optimizer, ("adamw", "adam"))
        _choice("schedule", self.schedule, ("cosine", "constant"))
        if not _is_count(self.crops_per_image):
            raise InvalidInputError(f"crops_per_image is {self.crops_per_image!r}: give 1 or more.")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidInputError(f"seed is {self.seed!r}: give a whole number, 0 or more.")
        if not self.phases:
            raise InvalidInputError("the recipe has no phase: give one or more.")
        if self.augmentation == "resized_crop" and self.crops_per_image > 1:
            raise InvalidInputError(f"crops_per_image is {self.crops_per_image}: a resized crop is one an image.")
        for phase in self.phases:
            self._check(phase)
        if self.phases[0].target == "masks" and self.ridge_start:
            raise InvalidInputError("the first phase's target is masks: begin with a phase on features, or ridge_start=False.")

    def _check(self, phase: Phase) -> None:
        _choice("target", phase.target, ("features", "masks"))
        if not _is_number(phase.share) or phase.share <= 0:
            raise InvalidInputError(f"{phase}: the share is a positive number, of the sum of all.")
        if not isinstance(phase.crop, int) or phase.crop < 0 or phase.crop % STRIDE:
            raise InvalidInputError(f"{phase}: the crop is a multiple of {STRIDE}, or 0 for whole images.")
        if not _is_count(phase.batch_size):
            raise InvalidInputError(f"{phase}: the batch has one or more.")
        if phase.crop and phase.batch_size % self.crops_per_image:
            raise InvalidInputError(f"{phase}: the batch is no multiple of crops_per_image, {self.crops_per_image}.")
        if phase.target == "masks" and (phase.crop or self.augmentation != "crop"):
            raise InvalidInputError(f"{phase}: masks need whole images, crop=0, and augmentation='crop'.")

    @property
    def trains_encoder(self) -> bool:
        """Whether there is a stage on features."""
        return (self.epochs if self.minutes is None else self.minutes) > 0

    def in_parts(self, parts: int) -> "Recipe":
        """Return the recipe with each batch raised to the next that so many parts, processes say, can share out evenly."""
        phases = []
        for phase in self.phases:
            multiple = parts * (self.crops_per_image if phase.crop else 1)
            phases.append(replace(phase, batch_size=-(-phase.batch_size // multiple) * multiple))
        decoder = self.decoder and replace(self.decoder, batch_size=-(-self.decoder.batch_size // parts) * parts)
        return replace(self, phases=tuple(phases), decoder=decoder)

    def continued(self) -> "Recipe":
        """Return the recipe for an encoder that is trained already: without the starts, and the hints that need them."""
        return replace(self, ridge_start=False, teacher_blocks=False, hint_weight=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, as they stand in YAML."""
        return asdict(self) | {"phases": [asdict(phase) for phase in self.phases]}  # which asdict leaves a tuple


def load_recipe(name: str, presets: Mapping[str, Recipe] | None = None) -> Recipe:
    """Return a preset by name, or the recipe in a YAML file.

    Args:
        name: One of the presets' names, or the path of a `.yaml` file.
        presets: The recipes with names, `PRESETS` by default.

    Raises:
        UnknownNameError: there is no such preset, or no such field in a recipe.
        InvalidInputError: the file is not there, is no YAML, or a value cannot be used.
    """
    presets = PRESETS if presets is None else presets
    if name in presets:
        return presets[name]
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        raise UnknownNameError.near("recipe", name, [*presets, "a .yaml file"])
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as e:
        raise InvalidInputError(f"{path} cannot be read as YAML ({e}): give one as a run's recipe.yaml.") from e
    if not isinstance(values, dict):
        raise InvalidInputError(f"{path} holds no recipe: give one as a run's recipe.yaml, `lr: 0.002` and so on.")
    return recipe_from_dict(values)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML, for `load_recipe`."""
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False)
    write_beside(path, lambda part: part.write_text(text, encoding="utf-8"))


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """Return the recipe with these values, as they stand in YAML, and the defaults for others."""
    values = dict(values)
    phases = values.pop("phases", None)
    if phases is not None:
        if not isinstance(phases, (list, tuple)) or not all(isinstance(phase, dict) for phase in phases):
            raise InvalidInputError(f"phases is {phases!r}: give a list of share, crop, batch_size and target.")
        values["phases"] = tuple(Phase(**_checked(Phase, "a phase", phase)) for phase in phases)
    decoder = values.get("decoder")
    if decoder is not None:
        if not isinstance(decoder, dict):
            raise InvalidInputError(f"decoder is {decoder!r}: give minutes, lr and so on, or leave it out.")
        values["decoder"] = DecoderRecipe(**_checked(DecoderRecipe, "a recipe's decoder", decoder))
    return Recipe(**_checked(Recipe, "a recipe", values))


def _checked(kind: type[Any], what: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, made floats where floats are meant; raise for a name that is no field."""
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            raise UnknownNameError.near(f"field of {what}", name, known)

    def check(name: str, value: object) -> object:
        # Text too, as YAML reads 1e-3 as such: it wants 1.0e-3.
        if isinstance(value, (int, str)) and not isinstance(value, bool) and float in (hints[name], *get_args(hints[name])):
            with suppress(ValueError):
                return float(value)
        return value

    return {name: check(name, value) for name, value in values.items()}


def _numbers(
    recipe: Any, prefix: str, *, positive: Sequence[str] = (), least_0: Sequence[str] = (), shares: Sequence[str] = ()
) -> None:
    """Raise InvalidInputError for fields that are no numbers, or not in their range; `minutes` may be None."""
    ranges: dict[str, tuple[Sequence[str], Callable[[float], bool]]] = {
        "a positive number": (positive, lambda value: value > 0),
        "a number, 0 or more": (least_0, lambda value: value >= 0),
        "a number from 0 to below 1": (shares, lambda value: 0 <= value < 1),
    }
    for wanted, (names, fits) in ranges.items():
        for name in names:
            value = getattr(recipe, name)
            if not (name == "minutes" and value is None) and not (_is_number(value) and fits(value)):
                raise InvalidInputError(f"{prefix}{name} is {value!r}: give {wanted}.")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidInputError(f"{name} is {value!r}: use {' or '.join(map(repr, choices))}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


PRESETS = {
    "default": Recipe(),
    # From trained weights, on whole images at a falling rate: the last run of those that ship, without its ridge finish,
    # which gave nothing there.
    "continue": Recipe(epochs=1.5, phases=(Phase(1.0, 0, 1),), lr=5e-4, ridge_finish=False).continued(),
}
