"""The command line, `groupmix-sam`: one file a command.

Nothing that is imported here imports torch: commands do that when they run.
"""

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .. import __version__
from ..errors import GroupMixSamError
from . import (
    adapt,
    batch,
    compare,
    demo,
    distill,
    encoders,
    evaluate,
    evaluate_video,
    everything,
    export,
    info,
    profile,
    push,
    segment,
    serve,
    stream,
)

__all__ = ["app", "main"]

HELP = """Segment Anything on a CPU: turn points and boxes into masks.

groupmix-sam segment photo.jpg --point 365,290
groupmix-sam demo photo.jpg
groupmix-sam adapt my_frames/ --teacher mobile_sam.pt --output runs/line
groupmix-sam export openvino exported/ --images my_frames/ --checkpoint runs/line/weights
groupmix-sam segment photos/ --prompts prompts.csv --format labelme --checkpoint exported/

Weights come with the package. Each command has examples of its own: groupmix-sam segment --help.
Results go to stdout, errors and warnings to stderr. Progress bars are shown only in a terminal.
"""
EPILOG = "Exit codes: 0 done; 1 an error, printed on one line, or skipped images; 2 wrong usage."


class Command(TyperCommand):
    """A command that registers the encoders in timm when it runs, if the command line started without them."""

    def invoke(self, ctx: Any) -> Any:
        from .. import encoders as _  # noqa: F401

        return super().invoke(ctx)


app = typer.Typer(
    name="groupmix-sam",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# The order is that of --help.
PANELS = {
    "Use": (segment.segment, everything.everything, demo.demo, stream.stream, info.info),
    "Train": (distill.distill, adapt.adapt),
    "Measure": (evaluate.evaluate, evaluate_video.evaluate_video, compare.compare, profile.profile, encoders.encoders),
    "Deploy": (export.export, serve.serve, batch.batch, push.push),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"groupmix-sam {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that belong to no command."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name that the terminal's encoding lacks must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    try:
        app()
    except GroupMixSamError as e:
        typer.echo(f"groupmix-sam: {e}", err=True)
        sys.exit(1)
