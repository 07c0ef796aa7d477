"""`groupmix-sam compare`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from .options import Device, Threads, weights_device


def compare(
    sources: Annotated[
        list[str], typer.Argument(help="JSON results of `evaluate`; or weights of models, of which the first is the truth.")
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of the images. Default: that of the results.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="For models: CSV or JSON with prompts, as for evaluate.")] = None,
    prompt_kind: Annotated[
        str | None, typer.Option(help="Kind of prompts to draw, such as box. Default: that of the first mask.")
    ] = None,
    pick: Annotated[str, typer.Option(help="Images to draw: worst or best of the first result, or random.")] = "worst",
    rows: Annotated[int, typer.Option(help="Number of images.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of random images.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    output: Annotated[Path, typer.Option(help="PNG file to write. An HTML page goes beside it.")] = Path("compare.png"),
) -> None:
    """Draw the masks of several models for the same prompts: a row per image, a column per model.

    groupmix-sam compare A.json B.json
    groupmix-sam compare mobile_sam.pt default --images photos/ --prompts prompts.csv
    """
    from ..evaluate import load_model, load_result
    from ..evaluate.plots import draw_cells, pick_images, predict_results, save_html, save_png
    from ..weights import is_exported

    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise InvalidInputError(f"cannot write {output}: give a file that ends in .png, in a folder that exists.")
    if all(source.endswith(".json") for source in sources):
        results = [load_result(source) for source in sources]
    elif images is None or prompts is None:
        raise InvalidInputError("models need images and prompts: give --images and --prompts, or results alone.")
    else:
        where = [device if is_exported(source) else weights_device(device) for source in sources]
        models = [load_model(source, device=place, threads=threads) for source, place in zip(sources, where, strict=True)]
        results = predict_results(models, images, prompts)
    if not results[0].rows:
        raise InvalidInputError(f"{sources[0]} has no mask for any of the prompts: there is nothing to compare.")
    kind = prompt_kind or str(results[0].rows[0]["prompt"])
    chosen = pick_images(results[0], kind, pick, rows, seed)
    heads, cells = draw_cells(results, chosen, kind, images)
    save_png(heads, cells, output)
    save_html(heads, cells, output.with_suffix(".html"))
    typer.echo(f"wrote {output} and {output.with_suffix('.html')}: {', '.join(chosen)}")
