"""`groupmix-sam segment`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from .options import Checkpoint, Encoder, numbers


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
    from ..images import as_box, as_points, check_aspect, draw_masks, read_image

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
        pairs = [numbers(text, 2, "x,y") for text in foreground + away]
        coords, labels = as_points(pairs, [1] * len(foreground) + [0] * len(away), image.shape[:2])
    if box is not None:
        corners = as_box(numbers(box, 4, "left,top,right,bottom"), image.shape[:2])

    from segment_anything import SamPredictor

    from ..sam import build_sam_groupmix

    predictor = SamPredictor(build_sam_groupmix(checkpoint, encoder=encoder, image_size=image_size))
    predictor.set_image(image)
    # One point may mean a part or the whole, so SAM is asked for three masks; more prompts mean one thing.
    ambiguous = corners is None and len(foreground) + len(away) == 1
    masks, scores, _ = predictor.predict(coords, labels, corners, multimask_output=ambiguous)
    best = int(scores.argmax())
    draw_masks(image, [masks[best]], points=coords, labels=labels, box=corners).save(output, format="PNG")
    share = 100 * masks[best].mean()
    typer.echo(f"wrote {output}: a mask over {share:.1f} % of the picture, predicted IoU {scores[best]:.2f}")
