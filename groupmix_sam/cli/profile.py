"""`groupmix-sam profile`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Threads


def profile(
    encoders: Annotated[list[str] | None, typer.Argument(help="Names of encoders, timm's too. Default: all of ours.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of the image in pixels.")] = 1024,
    stages: Annotated[bool, typer.Option("--stages", help="Also show each stage.")] = False,
    rounds: Annotated[int, typer.Option(help="Timed rounds, in which all encoders take turns; 0 for none.")] = 5,
    device: Annotated[str, typer.Option(help="Device to time on: auto, cpu, cuda, cuda:1 or mps.")] = "cpu",
    threads: Threads = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown or csv.")] = "text",
    output: Annotated[Path | None, typer.Option(help="File to write the table to. Default: stdout.")] = None,
) -> None:
    """Count an encoder's parameters and operations, and measure its memory and time on this machine.

    groupmix-sam profile gmf_sam_2282 --stages
    """
    from ..devices import use_threads
    from ..evaluate.profiling import cost_table, measure_costs
    from ..evaluate.tables import table
    from ..files import make_folder, write_beside
    from ..sam import ENCODERS

    use_threads(threads)
    if output is not None:
        make_folder(output.parent)  # before the measurement, which takes long
    costs = measure_costs(encoders or ENCODERS, image_size, stages=stages, rounds=rounds, device=device)
    text = table(cost_table(costs), form)
    if output is None:
        typer.echo(text)
    else:
        write_beside(output, lambda part: part.write_text(f"{text}\n", encoding="utf-8"))
        typer.echo(f"wrote {output}")
