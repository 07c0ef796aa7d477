"""Options that mean the same in every command, and how they are read."""

from typing import Annotated, Any

import typer

from ..errors import InvalidInputError

__all__ = ["Checkpoint", "Encoder", "ImageSize", "load_sam", "numbers"]

Checkpoint = Annotated[str, typer.Option(help="Weights: 'default', a file, a folder, or 'hf-hub:org/repo[@revision]'.")]
Encoder = Annotated[str, typer.Option(help="The registered name of the encoder.")]

ImageSize = Annotated[int, typer.Option(help="Side in pixels that pictures are resized to.")]


def load_sam(checkpoint: str, encoder: str, image_size: int) -> Any:
    """Return the Sam that these options name, on the GPU if there is one."""
    import torch

    from ..sam import build_sam_groupmix

    sam = build_sam_groupmix(checkpoint, encoder=encoder, image_size=image_size)
    return sam.to("cuda" if torch.cuda.is_available() else "cpu")


def numbers(text: str, count: int, form: str) -> list[float]:
    """Return `count` numbers that are written with commas between, as `form` shows."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InvalidInputError(f"{text!r} is not {form}: give {count} numbers with commas between, in pixels.")
    return values
