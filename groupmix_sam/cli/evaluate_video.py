"""`groupmix-sam evaluate-video`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from .options import Device, Encoder, ImageSize, Model, Threads


def evaluate_video(
    data: Annotated[Path, typer.Argument(help="A folder like DAVIS: JPEGImages/480p and Annotations/480p.")],
    track: Annotated[
        list[str] | None, typer.Option(help="tracker, nanosam or last-box. Repeat it for several. Default: all three.")
    ] = None,
    start: Annotated[str, typer.Option(help="How objects are prompted in the first frame: mask, box or point.")] = "mask",
    sequence: Annotated[list[str] | None, typer.Option(help="Only this sequence. Repeat it for several.")] = None,
    render: Annotated[Path | None, typer.Option(help="Write a video of each sequence into this folder.")] = None,
    checkpoint: Model = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Measure how well objects are followed in labelled videos, by DAVIS's semi-supervised J and F.

    groupmix-sam evaluate-video DAVIS --track tracker --start box --render videos/
    """
    from ..evaluate import video
    from ..files import make_folder
    from ..inference import Predictor

    if not data.is_dir():
        raise InvalidInputError(f"there is no folder {data}: give one with JPEGImages/480p and Annotations/480p.")
    dataset = video.VideoDataset(data, sequence)
    if render is not None:
        make_folder(render)
    predictor = Predictor.from_pretrained(checkpoint, encoder=encoder, image_size=image_size, device=device, threads=threads)
    scores = []
    for score in video.evaluate_video(predictor, dataset, track or list(video.FOLLOWERS), start, render):
        scores.append(score)
        typer.echo(f"{score.sequence} {score.object} {score.follower}: J {score.j:.3f}, F {score.f:.3f}", err=True)
    typer.echo(video.video_table(scores))
