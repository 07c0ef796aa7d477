"""Options that several commands share, and how they are parsed."""

from typing import Annotated

import typer

from ..errors import InvalidInputError

__all__ = ["Checkpoint", "Encoder", "ImageSize", "Model", "numbers"]

Checkpoint = Annotated[str, typer.Option(help="Weights: 'default', 'fast', a file, a folder, or 'hf-hub:org/repo@revision'.")]
Model = Annotated[
    str, typer.Option(help="Weights: 'default', 'fast', a file, a folder or 'hf-hub:org/repo'; or an exported folder.")
]
Encoder = Annotated[str | None, typer.Option(help="Name of the encoder. Default: that of the weights.")]
ImageSize = Annotated[int | None, typer.Option(help="Side in pixels that images are resized to. Default: that of the weights.")]


def numbers(text: str, count: int, form: str) -> list[float]:
    """Return the `count` numbers in a text such as "1,2"; `form` names them in the error."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InvalidInputError(f"{text!r} is not {form}: give {count} numbers in pixels, separated by commas.")
    return values
