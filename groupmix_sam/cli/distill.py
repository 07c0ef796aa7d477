"""`groupmix-sam distill`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from .options import ImageSize, Threads

Teacher = Annotated[
    str, typer.Option(help="MobileSAM's mobile_sam.pt, segment-anything's sam_vit_*.pth, an ONNX file or a TensorRT engine.")
]
Provider = Annotated[list[str] | None, typer.Option(help="ONNX Runtime's provider for an ONNX teacher; may be given again.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for what the teacher says of each image; in --output by default.")]
SaveMinutes = Annotated[float, typer.Option(help="Time between checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in --output was stopped.")]


def distill(
    images: Annotated[Path, typer.Argument(help="A folder of images or tars, a .tar, or a .txt with a path a line.")],
    teacher: Teacher,
    output: Annotated[Path, typer.Option(help="Folder for the weights, the logs and the checkpoint.")] = Path("runs/distill"),
    recipe: Annotated[
        str,
        typer.Option(
            help="'default', 'continue' (with --init-checkpoint), 'paper', 'nanosam', or a .yaml file with its own values."
        ),
    ] = "default",
    minutes: Annotated[
        float | None, typer.Option(help="Time to train the encoder, beside the teacher's, instead of epochs; 0 for none.")
    ] = None,
    decoder_minutes: Annotated[
        float | None, typer.Option(help="Time to train the mask decoder then, on the teacher's masks; not trained if left out.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="How often to see each image, instead of the recipe's.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="The encoder's registered name, or 'timm/' and a backbone's; by default what --init-checkpoint says."
        ),
    ] = None,
    image_size: ImageSize = None,
    init_checkpoint: Annotated[
        str | None, typer.Option(help="Weights to start from, like --checkpoint; none if left out.")
    ] = None,
    cache: Cache = None,
    use_cache: Annotated[bool, typer.Option("--cache-features/--no-cache", help="Keep what the teacher says on disk.")] = True,
    provider: Provider = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random, instead of the recipe's.")] = None,
    resume: Resume = False,
    accumulate: Annotated[int, typer.Option(help="Parts that a process takes its share of a batch in.")] = 1,
    grad_checkpointing: Annotated[bool, typer.Option("--grad-checkpointing", help="Trade time for memory.")] = False,
    precision: Annotated[str, typer.Option(help="'auto', 'fp32' or 'bf16'.")] = "auto",
    save_minutes: SaveMinutes = 5.0,
    threads: Threads = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
) -> None:
    """Train an encoder to see as a SAM's does, on your own unlabelled images.

    groupmix-sam distill my_photos/ --teacher mobile_sam.pt --minutes 60 --output runs/mine
    groupmix-sam distill my_photos/ --teacher mobile_sam.pt --minutes 60 --output runs/mine --resume
    groupmix-sam distill my_photos/ --teacher mobile_sam.pt --output runs/more --recipe continue --init-checkpoint best/
    groupmix-sam distill my_photos/ --teacher mobile_sam.pt --minutes 0 --decoder-minutes 60 --init-checkpoint best/
    """
    from dataclasses import replace

    from ..devices import use_threads
    from ..distill import PRESETS, DecoderRecipe, RunOptions, load_recipe
    from ..distill import distill as run
    from ..reproduce.recipes import RECIPES

    if minutes is not None and epochs is not None:
        raise InvalidInputError("--minutes and --epochs both say how long to train: give one.")
    if recipe == "continue" and init_checkpoint is None:
        raise InvalidInputError(
            "the recipe 'continue' goes on from trained weights: give --init-checkpoint, such as --init-checkpoint default."
        )
    values: dict[str, Any] = {"minutes": minutes, "epochs": epochs, "seed": seed}
    chosen = load_recipe(recipe, PRESETS | RECIPES)
    if decoder_minutes is not None:
        chosen = replace(chosen, decoder=replace(chosen.decoder or DecoderRecipe(), minutes=decoder_minutes))
    if epochs is not None:
        chosen = replace(chosen, minutes=None)  # which would come first
    use_threads(threads)
    run(
        images,
        teacher,
        output,
        replace(chosen, **{name: value for name, value in values.items() if value is not None}),
        RunOptions(
            resume=resume,
            accumulate=accumulate,
            grad_checkpointing=grad_checkpointing,
            precision=precision,
            save_minutes=save_minutes,
            tensorboard=tensorboard,
        ),
        encoder=encoder,
        init_checkpoint=init_checkpoint,
        cache=cache,
        use_cache=use_cache,
        providers=provider or ["CPUExecutionProvider"],
        image_size=image_size,
    )
