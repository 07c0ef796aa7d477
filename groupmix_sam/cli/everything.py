"""`groupmix-sam everything`."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..masks import TOLERANCE
from .options import Device, Encoder, ImageSize, Model, Threads
from .outputs import Category, Formats, Images, Json, Output, Overwrite, Tolerance, find_sources, open_writer, run

if TYPE_CHECKING:
    from ..annotations.types import Instance


def everything(
    images: Images,
    points_per_side: Annotated[int, typer.Option(help="Points per side of the prompt grid.")] = 32,
    pred_iou_thresh: Annotated[float, typer.Option(help="Drop masks with a lower predicted IoU.")] = 0.88,
    stability_score_thresh: Annotated[
        float, typer.Option(help="Drop masks that change more when the mask threshold moves.")
    ] = 0.95,
    min_mask_area: Annotated[int, typer.Option(help="Drop masks with fewer pixels.")] = 0,
    crop_n_layers: Annotated[int, typer.Option(help="1 also searches 4 crops of the image, 2 another 16, and so on.")] = 0,
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
    """Segment everything in images: prompt with a grid of points, keep the good masks, and draw or save them.

    groupmix-sam everything photo.jpg --points-per-side 16
    groupmix-sam everything photos/ --format labelme --output labelled/
    """
    from ..inference import Predictor
    from ..inference.automatic import everything as find
    from ..inference.automatic import everything_costs

    passes, prompts = everything_costs(points_per_side, crop_n_layers)
    named = find_sources(images)
    writer = open_writer(
        output, formats, named, [category], as_json, tolerance=tolerance, draw_prompts=False, overwrite=overwrite
    )
    predictor = Predictor.from_pretrained(checkpoint, encoder=encoder, image_size=image_size, device=device, threads=threads)
    plural = "es" if passes > 1 else ""
    typer.echo(f"{len(named)} x {passes} pass{plural} of the encoder and {prompts} prompts", err=True)
    left = len(named)

    def timed(_: str, image: Any) -> list["Instance"]:
        nonlocal left
        start = time.perf_counter()
        instances = find(
            predictor,
            image,
            points_per_side=points_per_side,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            min_mask_area=min_mask_area,
            crop_n_layers=crop_n_layers,
            category=category,
        )
        left -= 1
        if left == len(named) - 1:
            took = time.perf_counter() - start
            rest = took * left
            ahead = f", about {f'{rest:.0f} s' if rest < 120 else f'{rest / 60:.0f} min'} for the other {left}" if left else ""
            typer.echo(f"the first took {took:.1f} s{ahead}", err=True)
        return instances

    run(named, timed, writer, as_json)
