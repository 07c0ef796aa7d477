"""`groupmix-sam encoders`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Threads


def encoders(
    data: Annotated[Path, typer.Argument(help="A folder with train/CLASS/ and val/CLASS/, or CLASS/ alone, of images.")],
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="An encoder of the table, or of timm. Repeat it for several. Default: the table's twelve."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 30,
    image_size: Annotated[int, typer.Option(help="Side in pixels: 224, or a multiple of 64.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-4,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 2,
    threads: Threads = None,
    output: Annotated[Path, typer.Option(help="Folder to write the log, the table and the plot to.")] = Path("runs/encoders"),
) -> None:
    """Train image encoders as classifiers, all with one recipe, and compare them with the paper's Table 1.

    The same command resumes a stopped run with the next encoder.

        groupmix-sam encoders CLASSES --encoder groupmixformer_mobile
    """
    from ..devices import use_threads
    from ..evaluate.tables import table
    from ..files import write_beside
    from ..reproduce.table1 import PAPER, Settings, encoder_table, plot, train_encoders

    use_threads(threads)
    settings = Settings(epochs=epochs, image_size=image_size, batch_size=batch_size, lr=lr, seed=seed)
    log = train_encoders(encoder or list(PAPER), data, output, settings, workers)
    text = table(encoder_table(log), "markdown") + "\n"
    write_beside(output / "table.md", lambda part: part.write_text(text, encoding="utf-8"))
    plot(log, output / "curves.png")
    typer.echo(table(encoder_table(log)))
    typer.echo(f"wrote log.csv, table.md and curves.png into {output}; the paper's figures are from its own, private images")
