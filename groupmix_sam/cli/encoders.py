"""`groupmix-sam encoders`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Threads


def encoders(
    data: Annotated[Path, typer.Argument(help="A folder with train/CLASS/ and val/CLASS/, or CLASS/ alone, of images.")],
    encoder: Annotated[
        list[str] | None, typer.Option(help="One of the table's or of timm's, may be given again; by default the twelve.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often each image is seen.")] = 30,
    image_size: Annotated[int, typer.Option(help="Side in pixels: 224, or a multiple of 64.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    lr: Annotated[float, typer.Option(help="The learning rate at its highest.")] = 5e-4,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 2,
    threads: Threads = None,
    output: Annotated[Path, typer.Option(help="Folder to write the log, the table and the plot to.")] = Path("runs/encoders"),
) -> None:
    """Train and test image encoders as classifiers, all alike, and set them beside the paper's Table 1.

    A run that was cut off goes on with the encoders that are left.

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
    typer.echo(f"wrote log.csv, table.md and curves.png into {output}; the paper's figures are of its own, private images")
