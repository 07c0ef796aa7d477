"""What `segment` and `everything` share: many images in, the files that were asked for out."""

import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from ..annotations.coco import to_coco
from ..annotations.contours import to_contours
from ..annotations.index_mask import to_mask
from ..annotations.labelme import to_labelme
from ..annotations.types import AnnotatedImage, Instance
from ..annotations.yolo import to_yolo
from ..errors import ImageReadError, InvalidInputError, RunStoppedError, SaveError, UnknownNameError
from ..images import ImageFile, name_images
from ..masks import TOLERANCE, decode_rle
from ..visualize import draw_masks

__all__ = ["Category", "Formats", "Images", "Json", "Output", "Outputs", "Overwrite", "Tolerance", "annotate", "name_sources"]

# What an image's file is called after the image's name; COCO has one for all.
ENDINGS = {
    "overlay": "_overlay.png",
    "mask": "_mask.png",
    "coco": ".json",
    "contours": "_contours.json",
    "labelme": ".json",
    "yolo": ".txt",
}
# Those that are images themselves.
DRAWN = tuple(ENDINGS[kind] for kind in ("overlay", "mask"))
# What people correct by hand.
CORRECTED = {"coco", "labelme", "yolo"}

Images = Annotated[list[str], typer.Argument(help="Images, patterns such as '*.png', folders, a .tar or a .txt of paths.")]
Formats = Annotated[
    list[str] | None, typer.Option("--format", help="overlay, mask, coco, contours, labelme or yolo; may be given again.")
]
Output = Annotated[
    Path | None, typer.Option(help="A file, a folder, or - for stdout; by default files are named after the images, here.")
]
Category = Annotated[str, typer.Option(help="The name of what is shown, for annotation files.")]
Tolerance = Annotated[float, typer.Option(help="Pixels by which polygons may leave the outline, so as to have fewer points.")]
Json = Annotated[bool, typer.Option("--json", help="Print a line of JSON an image.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace annotation files, with what was corrected in them.")]


class Outputs:
    """Where instances go, checked before any work.

    Args:
        output: A file, a folder, "-" for stdout, or None for the working directory.
        formats: Keys of `ENDINGS`.
        images: By name, as `name_images` has them.
        categories: All that will be met.
        tolerance: Of polygons.
        as_json: Whether a program reads stdout: a line of JSON an image.
        draw_prompts: Whether overlays show what was asked with.
        overwrite: Whether annotation files that are there, and may have been corrected, are replaced.

    Raises:
        InvalidInputError: what would be written does not fit there.
    """

    def __init__(
        self,
        output: Path | None,
        formats: Sequence[str],
        images: Mapping[str, ImageFile],
        categories: Sequence[str],
        tolerance: float = TOLERANCE,
        as_json: bool = False,
        draw_prompts: bool = True,
        overwrite: bool = False,
    ) -> None:
        for name in formats:
            if name not in ENDINGS:
                raise UnknownNameError.near("format", name, ENDINGS)
        if not 0 <= tolerance < float("inf"):
            raise InvalidInputError(f"the tolerance is {tolerance}: give 0 or more pixels.")
        self.formats, self.categories, self.tolerance = list(dict.fromkeys(formats)), sorted(set(categories)), tolerance
        self.as_json, self.draw_prompts = as_json, draw_prompts
        self.to_stdout = output == Path("-")
        self.file: Path | None = None
        self.folder = output or Path()
        self.coco: list[AnnotatedImage] = []
        one_file = len(self.formats) == 1 and (len(images) == 1 or self.formats == ["coco"])
        if self.to_stdout:
            self.folder = Path()
            if not one_file:
                raise InvalidInputError("stdout takes one file: give one --format, and one image or --format coco.")
            if as_json:
                raise InvalidInputError("--json and --output - both want stdout: give one of them.")
        elif output is not None and output.suffix and not output.is_dir():
            self.file, self.folder = output, output.parent
            ending = "." + ENDINGS[self.formats[0]].rpartition(".")[2]
            if not one_file:
                raise InvalidInputError(f"{output} is one file: give a folder for several images or formats.")
            if output.suffix.lower() != ending or not output.parent.is_dir():
                raise InvalidInputError(f"cannot write {output}: give a file that ends in {ending}, in a folder that exists.")
        else:
            self._check_names(list(images))
        if not self.to_stdout:
            self._check_there(images, overwrite)
        self.classes = self._classes()

    def _check_names(self, names: Sequence[str]) -> None:
        taken: dict[Path, str] = {}
        for path, name in ((self._path(kind, name), name) for kind in self.formats if kind != "coco" for name in names):
            if taken.setdefault(path, name) != name:
                raise InvalidInputError(f"{path} would be both {taken[path]}'s and {name}'s: take them one by one.")
        if "coco" in self.formats and "labelme" in self.formats and self._path("coco", "") in taken:
            raise InvalidInputError(f"{self._path('coco', '')} would be both COCO's and LabelMe's: rename the image.")

    def _check_there(self, images: Mapping[str, ImageFile], overwrite: bool) -> None:
        given = {_identity(image.path) for image in images.values()} - {None}
        there = []
        for path, kind in {self._path(kind, name): kind for kind in self.formats for name in images}.items():
            identity = _identity(path)
            if identity in given:
                raise InvalidInputError(f"{path} is one of the images and would be lost: give another --output.")
            if kind in CORRECTED and identity is not None:
                there.append(path)
        if there and not overwrite:
            more = f" and {len(there) - 1} more" if there[1:] else ""
            raise InvalidInputError(
                f"{there[0]}{more} would be written over, with what was corrected there: give another --output, or --overwrite."
            )

    def _classes(self) -> list[str]:
        """Return YOLO's names by number: those that labels in the folder may have already, then the others."""
        path = self.folder / "classes.txt"
        known: list[str] = []
        if "yolo" in self.formats and not self.to_stdout and _identity(path) is not None:
            try:
                known = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
            except (OSError, ValueError) as e:
                raise InvalidInputError(f"{path} cannot be read ({e}): mend it, or give another --output.") from e
        return known + [name for name in self.categories if name not in known]

    def _path(self, kind: str, name: str) -> Path:
        if self.file is not None:
            return self.file
        if kind == "coco":
            return self.folder / "annotations.json"
        return self.folder / PurePath(name).with_name(PurePath(name).stem + ENDINGS[kind])

    def write(self, name: str, image: NDArray[np.uint8], annotated: AnnotatedImage) -> list[str]:
        """Write all of an image but COCO, which `close` does, and return the files' names."""
        written = []
        for kind in self.formats:
            if kind == "coco":
                self.coco.append(annotated)
            else:
                written.append(self._write(kind, name, self._render(kind, name, image, annotated)))
        return written

    def close(self) -> list[str]:
        """Write what is about all images, and return the files' names."""
        from ..files import write_beside

        written = []
        if self.coco:
            written.append(self._write("coco", "", _json(to_coco(self.coco, self.folder, self.categories))))
        if "yolo" in self.formats and not self.to_stdout:
            path = self.folder / "classes.txt"
            write_beside(path, lambda part: part.write_text("".join(f"{name}\n" for name in self.classes), encoding="utf-8"))
            written.append(str(path))
        return written

    def _render(self, kind: str, name: str, image: NDArray[np.uint8], annotated: AnnotatedImage) -> bytes:
        if kind == "overlay":
            return _png(_overlay(image, annotated, self.draw_prompts))
        if kind == "mask":
            return _png(to_mask(annotated))
        if kind == "yolo":
            return to_yolo(annotated, self.classes, self.tolerance).encode()
        folder = Path() if self.to_stdout else self._path(kind, name).parent
        return _json((to_contours if kind == "contours" else to_labelme)(annotated, folder, self.tolerance))

    def _write(self, kind: str, name: str, data: bytes) -> str:
        if self.to_stdout:
            stdout = typer.get_binary_stream("stdout")
            stdout.write(data)
            stdout.flush()
            return "-"
        from ..files import write_beside

        path = self._path(kind, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise SaveError(f"cannot make the folder {path.parent} ({e}): give another --output.") from e
        write_beside(path, lambda part: part.write_bytes(data))
        return str(path)


def name_sources(sources: Iterable[str]) -> dict[str, ImageFile]:
    """Return images as `name_images` does, but for overlays and masks of others of them, and say how many those are."""
    named = name_images(sources)
    stems = {image.path.with_suffix("") for image in named.values()}
    drawn = {
        name
        for name, image in named.items()
        for ending in DRAWN
        if image.path.name.endswith(ending) and Path(str(image.path).removesuffix(ending)) in stems
    }
    if drawn:
        typer.echo(f"{len(drawn)} of {len(named)} images are overlays or masks of others and are left out", err=True)
    return {name: image for name, image in named.items() if name not in drawn}


def annotate(
    images: dict[str, ImageFile],
    find: Callable[[str, NDArray[np.uint8]], list[Instance]],
    outputs: Outputs,
) -> None:
    """Find the instances in images, write them, and say so.

    One that cannot be read or used is named and left out, unless it is the only one.

    Raises:
        ImageReadError: some were left out.
        RunStoppedError: Ctrl-C; what was found is written, as it is after any other error.
    """
    done = skipped = 0
    stopped = False
    progress = tqdm(images.items(), unit="image", disable=None if len(images) > 1 else True)
    try:
        for name, source in progress:
            try:
                image = source.decode()
                size = image.shape[0], image.shape[1]
                found = AnnotatedImage(source.path / source.name, size, find(name, image))
            except (ImageReadError, InvalidInputError) as e:
                if len(images) == 1:
                    raise
                skipped += 1
                tqdm.write(f"skipped {name}: {e}", file=sys.stderr)
                if outputs.as_json:
                    tqdm.write(json.dumps({"image": str(source), "error": str(e)}), file=sys.stdout)
                continue
            files = outputs.write(name, image, found)
            done += 1
            if outputs.as_json:
                tqdm.write(json.dumps(_summary(found, files)), file=sys.stdout)
            elif files and not outputs.to_stdout:
                tqdm.write(f"wrote {', '.join(files)}: {_describe(found)}", file=sys.stdout)
    except KeyboardInterrupt:
        stopped = True
    except BaseException:
        if done:
            with suppress(SaveError):  # what is wrong has been told of
                outputs.close()
        raise
    files = outputs.close()
    if files and not outputs.as_json and not outputs.to_stdout:
        typer.echo(f"wrote {', '.join(files)}: {done} image{'s' * (done != 1)}")
    if stopped:
        raise RunStoppedError(f"stopped after {done} of {len(images)} images, which are written: give the others to go on.")
    if skipped:
        raise ImageReadError(f"{skipped} of {len(images)} images were skipped, see above: mend them or leave them out.")


def _overlay(image: NDArray[np.uint8], annotated: AnnotatedImage, draw_prompts: bool) -> Any:
    prompts = [instance.prompt or {} for instance in annotated.instances if draw_prompts]
    points = [point for prompt in prompts for point in prompt.get("points", [])]
    labels = [label for prompt in prompts for label in prompt.get("labels", [])]
    boxes = [prompt["box"] for prompt in prompts if "box" in prompt]
    return draw_masks(
        image,
        annotated.masks(),
        points=np.array(points) if points else None,
        labels=np.array(labels) if points else None,
        box=np.array(boxes) if boxes else None,
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is the same of all paths to one file; None if there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a ValueError of a name that no file can have
        return None
    return status.st_dev, status.st_ino


def _describe(image: AnnotatedImage) -> str:
    if not image.instances:
        return "no mask"
    covered = np.zeros(image.size, dtype=bool)
    for mask in image.masks():
        covered |= mask
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
            "area": int(np.count_nonzero(decode_rle(instance.mask))),
            "prompt": instance.prompt,
        }
        for instance in image.instances
    ]
    return {"image": str(image.path), "size": list(image.size), "instances": instances, "files": files}


def _png(image: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()
