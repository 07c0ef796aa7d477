"""Options that mean the same in every command, and how they are read."""

from typing import Annotated

import typer

from ..errors import InvalidInputError

__all__ = ["Checkpoint", "Encoder", "numbers"]

Checkpoint = Annotated[str, typer.Option(help="Weights: 'default', a file, a folder, or 'hf-hub:org/repo[@revision]'.")]
Encoder = Annotated[str, typer.Option(help="The registered name of the encoder.")]


def numbers(text: str, count: int, form: str) -> list[float]:
    """Return `count` numbers that are written with commas between, as `form` shows."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InvalidInputError(f"{text!r} is not {form}: give {count} numbers with commas between, in pixels.")
    return values
