"""The command line, `groupmix-sam`: one file a command."""

import sys

import typer

from ..errors import GroupMixSamError
from .adapt import adapt
from .compare import compare
from .demo import demo
from .distill import distill
from .encoders import encoders
from .evaluate import evaluate
from .export import export
from .info import info
from .profile import profile
from .segment import segment
from .stream import stream

__all__ = ["app", "main"]

app = typer.Typer(
    name="groupmix-sam",
    help="Segment Anything on the industrial PC: masks of what a point or a box shows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# The order is that of --help.
for command in (segment, demo, distill, adapt, evaluate, compare, profile, encoders, export, stream, info):
    app.command()(command)


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    try:
        app()
    except GroupMixSamError as e:
        typer.echo(f"groupmix-sam: {e}", err=True)
        sys.exit(1)
