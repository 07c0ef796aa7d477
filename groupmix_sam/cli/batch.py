"""`groupmix-sam batch`."""

from typing import Annotated

import typer

from ..errors import ImageReadError
from .options import Encoder, ImageSize


def batch(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A folder of images, or a URI such as s3://bucket/photos.")],
    output: Annotated[str, typer.Option(help="Folder or URI for the masks, Parquet.")],
    prompts: Annotated[
        str | None,
        typer.Option(help="CSV or Parquet: image, and x,y or left,top,right,bottom. Without it, everything."),
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(help="Weights as for segment, or a folder that `groupmix-sam export` wrote; where each worker finds it."),
    ] = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    points_per_side: Annotated[int, typer.Option(help="Of everything: points a side.")] = 32,
    pred_iou_thresh: Annotated[float, typer.Option(help="Of everything: drop masks of which the model is less sure.")] = 0.88,
    stability_score_thresh: Annotated[float, typer.Option(help="Of everything: drop masks that are less stable.")] = 0.95,
    batch_size: Annotated[int, typer.Option(help="Images a file, which are done again after a kill.")] = 16,
    workers: Annotated[int | None, typer.Option(help="Processes with a model each; by default as the CPUs allow.")] = None,
    threads: Annotated[int, typer.Option(help="CPUs a worker takes.")] = 1,
) -> None:
    """Segment images by the million, on this machine or on a Ray cluster, into Parquet files of run lengths.

    The same command goes on where a run was stopped. A cluster is taken from RAY_ADDRESS.

        groupmix-sam batch photos/ --prompts prompts.csv --output masks/
    """
    from ..batch.engine import batch as run

    totals = run(
        source,
        output,
        prompts,
        checkpoint=checkpoint,
        encoder=encoder,
        image_size=image_size,
        points_per_side=points_per_side,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
    )
    before = f", {totals.before} images were done before" if totals.before else ""
    typer.echo(f"{totals.images} images: {totals.masks} masks and {totals.errors} errors in {output}/masks{before}")
    if totals.errors:
        raise ImageReadError(
            f"{totals.errors} images or prompts could not be used: the column error in {output}/masks says why."
        )
