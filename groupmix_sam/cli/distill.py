"""`groupmix-sam distill`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from .options import Encoder


def distill(
    pictures: Annotated[Path, typer.Argument(help="A folder of pictures, unlabelled; folders below it count.")],
    teacher: Annotated[str, typer.Option(help="MobileSAM's mobile_sam.pt, or the same as safetensors.")],
    output: Annotated[Path, typer.Option(help="Folder to write the weights, the log and the cache to.")] = Path("runs/distill"),
    minutes: Annotated[float, typer.Option(help="Time to train, beside the teacher's: about a second a picture, once.")] = 60.0,
    encoder: Encoder = "gmf_sam_2282",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Train an encoder to see as MobileSAM's does, on your own unlabelled pictures."""
    from dataclasses import asdict

    from ..distill import Recipe, cache_features, check_student, find_pictures, load_teacher
    from ..distill import distill as train
    from ..sam import build_sam_groupmix
    from ..weights import load_prompt_and_decoder, save_pretrained

    recipe = Recipe(minutes=minutes, seed=seed)
    sam = build_sam_groupmix(None, encoder=encoder)
    check_student(sam.image_encoder)
    found = find_pictures(pictures)
    teacher_encoder, teacher_weights = load_teacher(teacher)
    load_prompt_and_decoder(sam, teacher_weights)
    cache = output / "cache"
    typer.echo(f"{len(found)} pictures; what the teacher says of them goes to {cache}, up to {7 * len(found)} MB")
    cached, skipped = cache_features(found, teacher_encoder, cache)
    for picture in skipped:
        typer.echo(f"skipped, it cannot be read or is too narrow: {picture}", err=True)
    if len(cached) < 2:
        raise InvalidInputError(f"{pictures} has {len(cached)} picture that can be used: give two or more, one is held out.")
    held_out = max(1, min(24, len(cached) // 10))
    average = train(sam.image_encoder, teacher_weights, cached[held_out:], cached[:held_out], output, recipe)
    sam.image_encoder.load_state_dict(average.state_dict())
    record = {"pictures": len(cached) - held_out, "held_out": held_out, "recipe": asdict(recipe)}
    save_pretrained(sam, output / "weights", training=record)
    typer.echo(f"wrote {output / 'weights'}: use it as --checkpoint; the log is {output / 'log.csv'}")
