"""Options that mean the same in every command."""

from typing import Annotated

import typer

__all__ = ["Checkpoint", "Encoder"]

Checkpoint = Annotated[str, typer.Option(help="Weights: 'default', a file, a folder, or 'hf-hub:org/repo[@revision]'.")]
Encoder = Annotated[str, typer.Option(help="The registered name of the encoder.")]
