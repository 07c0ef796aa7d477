"""`groupmix-sam segment`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError
from ..masks import TOLERANCE
from .options import Device, Encoder, ImageSize, Model, Threads, numbers
from .outputs import Category, Formats, Images, Json, Output, Overwrite, Tolerance, find_sources, open_writer, run

if TYPE_CHECKING:
    from ..prompts import Prompt


def segment(
    images: Images,
    point: Annotated[
        list[str] | None, typer.Option(help="x,y of a foreground point, in pixels. Repeat it for several points.")
    ] = None,
    background: Annotated[list[str] | None, typer.Option(help="x,y of a background point, in pixels.")] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="left,top,right,bottom in pixels. Repeat it for several instances.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="CSV (image,x,y or image,left,top,right,bottom, and category) or JSON with prompts.")
    ] = None,
    formats: Formats = None,
    output: Output = None,
    category: Category = "object",
    tolerance: Tolerance = TOLERANCE,
    as_json: Json = False,
    overwrite: Overwrite = False,
    checkpoint: Model = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Segment instances in images by points, boxes or both, and draw or save their masks.

    groupmix-sam segment photo.jpg --point 365,290
    groupmix-sam segment photos/ --prompts prompts.csv --format coco --output masks/
    groupmix-sam segment photo.jpg --box 170,16,420,312 --format mask --output - > mask.png
    """
    from ..inference import Predictor
    from ..inference.automatic import segment as find
    from ..prompts import EVERY, read_prompts

    if prompts is not None and (point or background or box):
        raise InvalidInputError("--prompts excludes --point, --background and --box: give the one or the others.")
    wanted = read_prompts(prompts) if prompts is not None else {EVERY: _prompts(point or [], background or [], box or [])}
    named = find_sources(images)
    for name in wanted:
        if name not in named and name != EVERY:
            raise InvalidInputError(f"{prompts} has a prompt for {name}, which is not among the images: give its folder.")
    if EVERY not in wanted:
        if len(named) > len(wanted):
            typer.echo(
                f"{len(named) - len(wanted)} of {len(named)} images have no prompt in {prompts} and are left out", err=True
            )
        named = {name: source for name, source in named.items() if name in wanted}
    categories = sorted({prompt.category or category for group in wanted.values() for prompt in group})
    writer = open_writer(output, formats, named, categories, as_json, tolerance=tolerance, overwrite=overwrite)
    predictor = Predictor.from_pretrained(checkpoint, encoder=encoder, image_size=image_size, device=device, threads=threads)
    run(named, lambda name, image: find(predictor, image, wanted.get(EVERY) or wanted[name], category), writer, as_json)


def _prompts(point: list[str], background: list[str], box: list[str]) -> list["Prompt"]:
    """Return one prompt of all points and a box, or one for each box."""
    from ..prompts import Prompt

    points = [numbers(text, 2, "x,y") for text in point + background]
    labels = [1] * len(point) + [0] * len(background)
    boxes: list[list[float] | None] = [numbers(text, 4, "left,top,right,bottom") for text in box]
    if not points and not boxes:
        raise InvalidInputError("nothing says what to segment: give --point x,y, --box left,top,right,bottom or --prompts.")
    if points and len(boxes) > 1:
        raise InvalidInputError(f"the points may belong to any of {len(boxes)} boxes: give one box, or a file with --prompts.")
    return [Prompt(points, labels, corners) for corners in boxes or [None]]
