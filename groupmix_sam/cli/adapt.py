"""`groupmix-sam adapt`."""

from pathlib import Path
from typing import Annotated

import typer

from .distill import Cache, Provider, Resume, SaveMinutes
from .options import Checkpoint, Encoder, ImageSize, Threads


def adapt(
    images: Annotated[Path, typer.Argument(help="Your frames: a folder of images or tars, a .tar, or a .txt of paths.")],
    labels: Annotated[
        Path | None, typer.Option(help="Masks of some frames: a COCO file, or a folder of LabelMe or YOLO files.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="For unlabelled frames: mobile_sam.pt, sam_vit_*.pth, an ONNX file or a TensorRT engine.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the weights, the logs and the checkpoint.")] = Path("runs/adapt"),
    minutes: Annotated[
        float, typer.Option(help="Training time of each stage: of the encoder with a teacher, of the decoder with labels.")
    ] = 20.0,
    prompt_kind: Annotated[str, typer.Option(help="Prompts to train for with labels: 'box', 'point' or 'both'.")] = "both",
    encoder_too: Annotated[
        bool, typer.Option("--encoder-too", help="Train the encoder on the labels as well, at a low rate: slower.")
    ] = False,
    replay_images: Annotated[Path | None, typer.Option(help="Images of other objects, to keep what the weights know.")] = None,
    checkpoint: Checkpoint = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    cache: Cache = None,
    provider: Provider = None,
    resume: Resume = False,
    save_minutes: SaveMinutes = 5.0,
    threads: Threads = None,
) -> None:
    """Fine-tune trained weights on frames from your camera: with labels, with a teacher, or with both.

    groupmix-sam adapt my_frames/ --labels annotations.json --minutes 10 --output runs/labelled
    groupmix-sam adapt my_frames/ --teacher mobile_sam.pt --minutes 20 --output runs/line
    """
    from dataclasses import replace

    from ..devices import use_threads
    from ..distill import ADAPT, DecoderRecipe, RunOptions
    from ..distill import adapt as run

    use_threads(threads)
    decoder = replace(ADAPT.decoder or DecoderRecipe(), minutes=minutes, encoder_rate=0.1 if encoder_too else 0.0)
    run(
        images,
        output,
        replace(ADAPT, minutes=minutes, decoder=decoder),
        RunOptions(resume=resume, save_minutes=save_minutes),
        teacher=teacher,
        labels=labels,
        prompt_kind=prompt_kind,
        checkpoint=checkpoint,
        encoder=encoder,
        replay_images=replay_images,
        cache=cache,
        providers=provider or ["CPUExecutionProvider"],
        image_size=image_size,
    )
