"""What `segment` and `everything` share: their options, and what they print while masks are written."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from ..annotations.types import AnnotatedImage, Instance
from ..annotations.writer import AnnotationWriter, annotate, leave_out_drawings
from ..errors import ImageReadError, InvalidInputError, RunStoppedError
from ..images import ImageFile, name_images

__all__ = ["Category", "Formats", "Images", "Json", "Output", "Overwrite", "Tolerance", "find_sources", "open_writer", "run"]

Images = Annotated[list[str], typer.Argument(help="Images, patterns such as '*.png', folders, a .tar, or a .txt of paths.")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="overlay, mask, coco, contours, labelme or yolo. Repeat it for several formats."),
]
Output = Annotated[
    Path | None, typer.Option(help="A file, a folder, or - for stdout. By default files go to the working directory.")
]
Category = Annotated[str, typer.Option(help="Category of instances whose prompt names none.")]
Tolerance = Annotated[float, typer.Option(help="Polygon simplification tolerance in pixels: more gives fewer points.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON per image.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace annotation files, including your corrections.")]


def find_sources(sources: Iterable[str]) -> dict[str, ImageFile]:
    """Return the images by name, and say how many were left out as overlays or masks of others."""
    named = name_images(sources)
    images = leave_out_drawings(named)
    if len(images) < len(named):
        left_out = len(named) - len(images)
        typer.echo(f"{left_out} of {len(named)} images are overlays or masks of others and are left out", err=True)
    return images


def open_writer(
    output: Path | None,
    formats: Sequence[str] | None,
    images: dict[str, ImageFile],
    categories: Sequence[str],
    as_json: bool,
    **options: Any,
) -> AnnotationWriter:
    """Return the writer that the options describe."""
    if output != Path("-"):
        return AnnotationWriter(output, formats or ["overlay"], images, categories, **options)
    if as_json:
        raise InvalidInputError("--json and --output - both write to stdout: give one of them.")
    return AnnotationWriter(typer.get_binary_stream("stdout"), formats or ["overlay"], images, categories, **options)


def run(
    images: dict[str, ImageFile],
    find: Callable[[str, NDArray[np.uint8]], list[Instance]],
    writer: AnnotationWriter,
    as_json: bool,
) -> None:
    """Annotate images and print what was written.

    Raises:
        ImageReadError: images were skipped.
        RunStoppedError: Ctrl-C; what was found is written.
    """
    done = skipped = 0
    stopped = False
    with writer:
        progress = tqdm(
            annotate(images, find, writer), total=len(images), unit="image", disable=None if len(images) > 1 else True
        )
        try:
            for outcome in progress:
                if outcome.annotated is None:
                    skipped += 1
                    tqdm.write(f"skipped {outcome.name}: {outcome.error}", file=sys.stderr)
                    if as_json:
                        tqdm.write(json.dumps({"image": str(outcome.source), "error": outcome.error}), file=sys.stdout)
                    continue
                done += 1
                if as_json:
                    tqdm.write(json.dumps(_summary(outcome.annotated, outcome.files)), file=sys.stdout)
                elif outcome.files:
                    tqdm.write(f"wrote {', '.join(outcome.files)}: {_describe(outcome.annotated)}", file=sys.stdout)
        except KeyboardInterrupt:
            stopped = True
        files = writer.close()
    if files and not as_json:
        typer.echo(f"wrote {', '.join(files)}: {done} image{'s' * (done != 1)}")
    if stopped:
        raise RunStoppedError(f"stopped after {done} of {len(images)} images, whose files are written: run the others later.")
    if skipped:
        raise ImageReadError(f"{skipped} of {len(images)} images were skipped, see above: fix them or leave them out.")


def _describe(image: AnnotatedImage) -> str:
    if not image.instances:
        return "no mask"
    covered = np.zeros(image.size, dtype=bool)
    for instance in image.instances:
        covered[instance.window] |= instance.crop
    scores = sorted(instance.score for instance in image.instances)
    many = len(scores) > 1
    masks = f"{len(scores)} masks" if many else "a mask"
    score = f"{scores[0]:.2f} to {scores[-1]:.2f}" if many else f"{scores[0]:.2f}"
    return f"{masks} over {100 * covered.mean():.1f} % of the image, predicted IoU {score}"


def _summary(image: AnnotatedImage, files: list[str]) -> dict[str, Any]:
    instances = [
        {
            "category": instance.category,
            "score": round(instance.score, 4),
            "area": instance.area,
            "prompt": instance.prompt and instance.prompt.record(),
        }
        for instance in image.instances
    ]
    return {"image": str(image.path), "size": list(image.size), "instances": instances, "files": files}
