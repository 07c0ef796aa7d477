"""`groupmix-sam everything`."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..masks import TOLERANCE
from .options import Encoder, ImageSize, Model
from .outputs import Category, Formats, Json, Output, Outputs, Overwrite, Pictures, Tolerance, annotate, name_sources

if TYPE_CHECKING:
    from ..annotations.types import Thing


def everything(
    pictures: Pictures,
    grid: Annotated[int, typer.Option(help="Points a side that are asked with.")] = 32,
    least_score: Annotated[float, typer.Option(help="Leave out masks of which the model expects a lower IoU.")] = 0.88,
    least_stability: Annotated[float, typer.Option(help="Leave out masks that change more when the threshold does.")] = 0.95,
    least_area: Annotated[int, typer.Option(help="Leave out masks of fewer pixels.")] = 0,
    crop_layers: Annotated[int, typer.Option(help="Search parts of the picture too: 4, and 16, and so on.")] = 0,
    formats: Formats = None,
    output: Output = None,
    category: Category = "thing",
    tolerance: Tolerance = TOLERANCE,
    as_json: Json = False,
    overwrite: Overwrite = False,
    checkpoint: Model = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
) -> None:
    """Segment everything in pictures, by a grid of points, and write masks: drawn over the picture, or for other programs.

    groupmix-sam everything photo.jpg --grid 16
    groupmix-sam everything photos/ --format labelme --output labelled/
    """
    from ..inference.automatic import everything as find
    from ..inference.automatic import everything_costs
    from ..inference.predictor import load_predictor

    passes, prompts = everything_costs(grid, crop_layers)
    named = name_sources(pictures)
    outputs = Outputs(
        output, formats or ["overlay"], named, [category], tolerance, as_json, draw_prompts=False, overwrite=overwrite
    )
    predictor = load_predictor(checkpoint, encoder=encoder, image_size=image_size)
    plural = "es" if passes > 1 else ""
    typer.echo(f"{len(named)} x {passes} pass{plural} of the encoder and {prompts} prompts", err=True)
    left = len(named)

    def timed(_: str, image: Any) -> list["Thing"]:
        nonlocal left
        start = time.perf_counter()
        things = find(
            predictor,
            image,
            grid=grid,
            least_score=least_score,
            least_stability=least_stability,
            least_area=least_area,
            crop_layers=crop_layers,
            category=category,
        )
        left -= 1
        if left == len(named) - 1:
            took = time.perf_counter() - start
            rest = took * left
            ahead = f", about {f'{rest:.0f} s' if rest < 120 else f'{rest / 60:.0f} min'} for the other {left}" if left else ""
            typer.echo(f"the first took {took:.1f} s{ahead}", err=True)
        return things

    annotate(named, timed, outputs)
