"""`groupmix-sam distill`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from .options import ImageSize, Threads

Teacher = Annotated[
    str, typer.Option(help="MobileSAM's mobile_sam.pt, segment-anything's sam_vit_*.pth, an ONNX file or a TensorRT engine.")
]
Provider = Annotated[
    list[str] | None, typer.Option(help="ONNX Runtime's execution provider for an ONNX teacher. Repeat it for several.")
]
Cache = Annotated[Path | None, typer.Option(help="Folder for features that are computed once. Default: in --output.")]
SaveMinutes = Annotated[float, typer.Option(help="Minutes between checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --output.")]


def distill(
    images: Annotated[Path, typer.Argument(help="A folder of images or tars, a .tar, or a .txt with one path per line.")],
    teacher: Teacher,
    output: Annotated[Path, typer.Option(help="Folder for the weights, the logs and the checkpoint.")] = Path("runs/distill"),
    recipe: Annotated[
        str,
        typer.Option(
            help="'default', 'continue' (with --init-checkpoint), 'paper', 'nanosam', or a .yaml file with its own values."
        ),
    ] = "default",
    minutes: Annotated[
        float | None, typer.Option(help="Training time of the encoder, excluding the teacher pass. 0: it is not trained.")
    ] = None,
    decoder_minutes: Annotated[
        float | None, typer.Option(help="Training time of the mask decoder, on the teacher's masks. Default: not trained.")
    ] = None,
    encoder_too: Annotated[
        bool,
        typer.Option(
            "--encoder-too", help="With --decoder-minutes: train the encoder with the decoder, on masks and features."
        ),
    ] = False,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images. Default: the recipe's.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="The encoder's name, or 'timm/' and a backbone's. Default: that of --init-checkpoint."),
    ] = None,
    image_size: ImageSize = None,
    init_checkpoint: Annotated[
        str | None, typer.Option(help="Weights to start from, like --checkpoint. Default: none.")
    ] = None,
    cache: Cache = None,
    use_cache: Annotated[bool, typer.Option("--cache-features/--no-cache", help="Keep the teacher's features on disk.")] = True,
    provider: Provider = None,
    seed: Annotated[int | None, typer.Option(help="Random seed. Default: the recipe's.")] = None,
    resume: Resume = False,
    accumulate: Annotated[int, typer.Option(help="Gradient accumulation steps.")] = 1,
    grad_checkpointing: Annotated[
        bool, typer.Option("--grad-checkpointing", help="Recompute activations to save memory.")
    ] = False,
    precision: Annotated[str, typer.Option(help="'auto' (bf16 on a GPU that has it), 'fp32' or 'bf16'.")] = "auto",
    save_minutes: SaveMinutes = 5.0,
    threads: Threads = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
) -> None:
    """Train an encoder on unlabelled images to reproduce a teacher's features.

    groupmix-sam distill my_photos/ --teacher mobile_sam.pt --minutes 60 --output runs/mine
    groupmix-sam distill my_photos/ --teacher mobile_sam.pt --minutes 60 --output runs/mine --resume
    groupmix-sam distill my_photos/ --teacher mobile_sam.pt --output runs/more --recipe continue --init-checkpoint best/
    groupmix-sam distill my_photos/ --teacher mobile_sam.pt --minutes 0 --decoder-minutes 60 --init-checkpoint best/
    """
    from dataclasses import replace

    from ..devices import use_threads
    from ..distill import JOINT_RATE, PRESETS, DecoderRecipe, RunOptions, load_recipe
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
    if encoder_too:
        if chosen.decoder is None:
            raise InvalidInputError("--encoder-too trains the encoder with the decoder: give --decoder-minutes.")
        chosen = replace(chosen, decoder=replace(chosen.decoder, encoder_rate=JOINT_RATE))
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
