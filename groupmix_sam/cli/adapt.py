"""`groupmix-sam adapt`."""

from pathlib import Path
from typing import Annotated

import typer

from .distill import Cache, Provider, Resume, SaveMinutes, Teacher
from .options import Checkpoint, Encoder, ImageSize, Threads


def adapt(
    images: Annotated[Path, typer.Argument(help="Your frames: a folder of images or tars, a .tar, or a .txt of paths.")],
    teacher: Teacher,
    output: Annotated[Path, typer.Option(help="Folder for the weights, the logs and the checkpoint.")] = Path("runs/adapt"),
    minutes: Annotated[float, typer.Option(help="Training time, excluding the teacher pass.")] = 20.0,
    replay_images: Annotated[Path | None, typer.Option(help="Images of other objects: up to 25 % of the training set.")] = None,
    checkpoint: Checkpoint = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    cache: Cache = None,
    provider: Provider = None,
    resume: Resume = False,
    save_minutes: SaveMinutes = 5.0,
    threads: Threads = None,
) -> None:
    """Fine-tune trained weights on unlabelled frames from your camera.

    groupmix-sam adapt my_frames/ --teacher mobile_sam.pt --minutes 20 --output runs/line
    """
    from dataclasses import replace

    from ..devices import use_threads
    from ..distill import ADAPT, RunOptions
    from ..distill import adapt as run

    use_threads(threads)
    run(
        images,
        teacher,
        output,
        replace(ADAPT, minutes=minutes),
        RunOptions(resume=resume, save_minutes=save_minutes),
        checkpoint=checkpoint,
        encoder=encoder,
        replay_images=replay_images,
        cache=cache,
        providers=provider or ["CPUExecutionProvider"],
        image_size=image_size,
    )
