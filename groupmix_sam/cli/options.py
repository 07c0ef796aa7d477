"""Options that mean the same in every command, and how they are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError

__all__ = ["Checkpoint", "Encoder", "Exported", "ImageSize", "load_predictor", "numbers"]

Checkpoint = Annotated[str, typer.Option(help="Weights: 'default', a file, a folder, or 'hf-hub:org/repo@revision'.")]
Encoder = Annotated[str, typer.Option(help="The registered name of the encoder.")]

ImageSize = Annotated[int, typer.Option(help="Side in pixels that pictures are resized to.")]


Exported = Annotated[Path | None, typer.Option(help="A folder that `groupmix-sam export` wrote, instead of weights.")]


def load_predictor(model: Path | None, checkpoint: str, encoder: str, image_size: int, kind: Callable[[Any], Any]) -> Any:
    """Return a predictor of the exported folder, or one of `kind` of the Sam, on the GPU if there is one."""
    import torch

    from ..deploy import Predictor
    from ..sam import build_sam_groupmix

    if model is None:
        sam = build_sam_groupmix(checkpoint, encoder=encoder, image_size=image_size)
        return kind(sam.to("cuda" if torch.cuda.is_available() else "cpu"))
    if (checkpoint, encoder, image_size) != ("default", "gmf_sam_2282", 1024):
        raise InvalidInputError(f"{model} has its own weights and size: leave out --checkpoint, --encoder and --image-size.")
    return Predictor(model)


def numbers(text: str, count: int, form: str) -> list[float]:
    """Return `count` numbers that are written with commas between, as `form` shows."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InvalidInputError(f"{text!r} is not {form}: give {count} numbers with commas between, in pixels.")
    return values
