"""`groupmix-sam batch`."""

from typing import Annotated

import typer

from ..errors import ImageReadError, without_secrets
from .options import Device, Encoder, ImageSize


def batch(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Folder of images, or a URI such as s3://bucket/photos.")],
    output: Annotated[str, typer.Option(help="Folder or URI to write the masks to, as Parquet.")],
    prompts: Annotated[
        str | None,
        typer.Option(help="CSV, JSON or Parquet with image, and x,y or left,top,right,bottom. Default: segment everything."),
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(help="Weights, or an exported folder, which each worker must find under this name."),
    ] = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    points_per_side: Annotated[int, typer.Option(help="Without prompts: points per side of the grid.")] = 32,
    pred_iou_thresh: Annotated[float, typer.Option(help="Without prompts: drop masks with a lower predicted IoU.")] = 0.88,
    stability_score_thresh: Annotated[
        float, typer.Option(help="Without prompts: drop masks that change more when the mask threshold moves.")
    ] = 0.95,
    batch_size: Annotated[
        int, typer.Option(help="Images per output file. A killed run repeats at most this many per worker.")
    ] = 16,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes, with one model each. Default: as many as CPUs and GPUs allow.")
    ] = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(help="CPUs per worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs per worker. 0.5 puts two workers on one GPU.")] = 0,
) -> None:
    """Segment millions of images, on this machine or a Ray cluster, and write the masks as run lengths in Parquet files.

    The same command resumes a stopped run. RAY_ADDRESS names the cluster.

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
        device=device,
        threads=threads,
        gpus_per_worker=gpus_per_worker,
    )
    before = f", {totals.before} images were done before" if totals.before else ""
    place = without_secrets(output)
    typer.echo(f"{totals.images} images: {totals.masks} masks and {totals.errors} errors in {place}/masks{before}")
    if totals.errors:
        raise ImageReadError(
            f"{totals.errors} images or prompts could not be used: the column error in {output}/masks says why."
        )
