"""The command line, `groupmix-sam`."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from .errors import GroupMixSamError, InvalidInputError

app = typer.Typer(
    name="groupmix-sam",
    help="Segment Anything on the industrial PC: masks of what a point or a box shows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Checkpoint = Annotated[str, typer.Option(help="Weights: 'default', a file, a folder, or 'hf-hub:org/repo[@revision]'.")]
Encoder = Annotated[str, typer.Option(help="The registered name of the encoder.")]


@app.command()
def segment(
    picture: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP, TIFF ...")],
    point: Annotated[list[str] | None, typer.Option(help="x,y in pixels, on what you want; may be given again.")] = None,
    background: Annotated[list[str] | None, typer.Option(help="x,y in pixels, on what you do not want.")] = None,
    box: Annotated[str | None, typer.Option(help="left,top,right,bottom in pixels.")] = None,
    output: Annotated[Path | None, typer.Option(help="Overlay to write, a PNG; by default beside you.")] = None,
    checkpoint: Checkpoint = "default",
    encoder: Encoder = "gmf_sam_2282",
    image_size: Annotated[int, typer.Option(help="Side in pixels that the picture is resized to.")] = 1024,
) -> None:
    """Segment one thing in a picture, by points, a box or both, and write the mask drawn over the picture."""
    from .images import as_box, as_points, check_aspect, draw_masks, read_image

    output = output or Path(f"{picture.stem}_mask.png")
    if output.suffix.lower() != ".png" or output.is_dir() or not output.parent.is_dir():
        raise InvalidInputError(f"cannot write {output}: give a file that ends in .png, in a folder that exists.")
    image = read_image(picture)
    check_aspect(image.shape[:2], image_size)
    foreground, away = point or [], background or []
    if not foreground and not away and box is None:
        raise InvalidInputError("nothing says what to segment: give --point x,y or --box left,top,right,bottom.")
    coords = labels = corners = None
    if foreground or away:
        pairs = [_numbers(text, 2, "x,y") for text in foreground + away]
        coords, labels = as_points(pairs, [1] * len(foreground) + [0] * len(away), image.shape[:2])
    if box is not None:
        corners = as_box(_numbers(box, 4, "left,top,right,bottom"), image.shape[:2])

    from segment_anything import SamPredictor

    from .sam import build_sam_groupmix

    predictor = SamPredictor(build_sam_groupmix(checkpoint, encoder=encoder, image_size=image_size))
    predictor.set_image(image)
    # One point may mean a part or the whole, so SAM is asked for three masks; more prompts mean one thing.
    ambiguous = corners is None and len(foreground) + len(away) == 1
    masks, scores, _ = predictor.predict(coords, labels, corners, multimask_output=ambiguous)
    best = int(scores.argmax())
    draw_masks(image, [masks[best]], points=coords, labels=labels, box=corners).save(output, format="PNG")
    share = 100 * masks[best].mean()
    typer.echo(f"wrote {output}: a mask over {share:.1f} % of the picture, predicted IoU {scores[best]:.2f}")


@app.command()
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

    from .distill import Recipe, cache_features, check_student, find_pictures, load_teacher
    from .distill import distill as train
    from .sam import build_sam_groupmix
    from .weights import load_prompt_and_decoder, save_pretrained

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


@app.command()
def info() -> None:
    """Show versions, devices and the weights that ship with the package."""
    import torch

    from .encoders.config import pretrained_file
    from .sam import ENCODERS

    typer.echo(f"groupmix-sam {_version('groupmix-sam')}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "timm", "segment-anything", "segment-anything-py", "safetensors", "huggingface_hub"):
        typer.echo(f"  {package} {_version(package)}")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    typer.echo(f"  CUDA device: {cuda}; CPU threads: {torch.get_num_threads()}")
    for name in ENCODERS:
        shipped = "weights ship" if Path(pretrained_file(name)).is_file() else "no weights here"
        typer.echo(f"  {name}: {shipped}")


def _numbers(text: str, count: int, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InvalidInputError(f"{text!r} is not {form}: give {count} numbers with commas between, in pixels.")
    return values


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    try:
        app()
    except GroupMixSamError as e:
        typer.echo(f"groupmix-sam: {e}", err=True)
        sys.exit(1)
