"""Options that mean the same in every command, and how they are read."""

from typing import Annotated

import typer

from ..errors import InvalidInputError

__all__ = ["Checkpoint", "Encoder", "ImageSize", "Model", "numbers"]

Checkpoint = Annotated[str, typer.Option(help="Weights: 'default', a file, a folder, or 'hf-hub:org/repo@revision'.")]
Model = Annotated[str, typer.Option(help="Weights like 'default', or a folder that `groupmix-sam export` wrote.")]
Encoder = Annotated[str | None, typer.Option(help="The encoder's registered name; by default what the weights say.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Side in pixels that images are resized to; by default what the weights say, or 1024.")
]


def numbers(text: str, count: int, form: str) -> list[float]:
    """Return `count` numbers that are written with commas between, as `form` shows."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InvalidInputError(f"{text!r} is not {form}: give {count} numbers with commas between, in pixels.")
    return values
