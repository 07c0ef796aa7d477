"""The paper's Figures 3 and 4, as PNG and HTML: a row per image, a column per model, with prompts and masks."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import InvalidInputError, UnknownNameError
from ..files import write_beside
from ..images import read_image
from ..visualize import draw_masks
from .dataset import Row, decode
from .models import Model
from .protocol import Protocol
from .reference import ReferenceDataset
from .results import Result
from .summary import check_comparable, result_name

__all__ = ["Cell", "draw_cells", "pick_images", "predict_results", "save_html", "save_png"]

MARGIN, LINE = 8, 20  # pixels of the PNG


@dataclass(frozen=True)
class Cell:
    """A drawn image and its caption."""

    image: Image.Image
    caption: str


def predict_results(models: Sequence[Model], images: str | PathLike[str], prompts: str | PathLike[str]) -> list[Result]:
    """Return the results of all models but the first, whose masks are the truth; nothing is written.

    Args:
        models: Two or more.
        images: Their folder.
        prompts: A file for `read_prompts`.
    """
    if len(models) < 2:
        raise InvalidInputError("there is one model: give two or more to compare.")
    protocol = Protocol()
    task = ReferenceDataset(images, protocol, models[0], prompts)
    results = []
    for model in models[1:]:
        rows = [row for image in task.images() for row in task.measure(model.predictor, image)]
        results.append(Result(task.kind, protocol.record(), model.record(), task.record(), {}, rows))
    return results


def pick_images(result: Result, prompt: str, pick: str = "worst", count: int = 6, seed: int = 0) -> list[str]:
    """Return the names of `count` images by their mean IoU in a result: the "worst" or "best" first, or "random" ones.

    Raises:
        InvalidInputError: the result has no IoU, as it is of detections.
        UnknownNameError: there is no such prompt or pick.
    """
    check_comparable(result, result)  # detections are not
    ious: dict[str, list[float]] = {}
    for row in result.rows:
        if row["prompt"] == prompt:
            ious.setdefault(row["image"], []).append(row["iou"])
    if not ious:
        raise UnknownNameError.near("prompt in the result", prompt, {row["prompt"] for row in result.rows})
    if pick == "random":
        return [str(name) for name in np.random.default_rng(seed).permutation(list(ious))[:count]]
    if pick not in ("worst", "best"):
        raise UnknownNameError.near("way to pick images", pick, ("best", "random", "worst"))
    means = {name: float(np.mean(values)) for name, values in ious.items()}
    return sorted(means, key=lambda name: means[name], reverse=pick == "best")[:count]


def draw_cells(
    results: Sequence[Result], images: Sequence[str], prompt: str, folder: str | PathLike[str] | None = None
) -> tuple[list[str], list[list[Cell]]]:
    """Return the columns' heads, the truth's first, and a row of cells for each image.

    Args:
        results: Of one protocol on the same data.
        images: Names of their images.
        prompt: The kind of prompt, such as "box".
        folder: Folder of the images; by default that of the results.
    """
    for result in results[1:]:
        check_comparable(results[0], result)
    folder = Path(folder or results[0].data["folder"])
    referenced = results[0].kind == "reference"
    heads = [results[0].data["reference"]["name"] if referenced else "labels", *map(result_name, results)]
    cells = []
    for name in images:
        image = read_image(folder / name)
        columns = [[row for row in r.rows if (row["image"], row["prompt"]) == (name, prompt)] for r in results]
        for rows in columns:
            rows.sort(key=lambda row: -float(row["area"]))  # small instances over large ones
        line = [Cell(_draw(image, columns[0], "truth"), name)]
        for rows in columns:
            mean = np.mean([row["iou"] for row in rows]) if rows else np.nan
            line.append(Cell(_draw(image, rows, "mask"), f"IoU {mean:.3f}" + (f", mean of {len(rows)}" if rows[1:] else "")))
        cells.append(line)
    return heads, cells


def save_png(heads: Sequence[str], cells: Sequence[Sequence[Cell]], path: str | PathLike[str], width: int = 360) -> None:
    """Write the figure as one image, its columns `width` pixels wide."""
    font = ImageFont.load_default(14)
    heights = [max(_fit(cell.image, width).height for cell in row) + LINE + MARGIN for row in cells]
    out = Image.new("RGB", (len(heads) * (width + MARGIN) + MARGIN, LINE + MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(out)

    def write(column: int, y: int, text: str) -> None:
        while draw.textlength(text, font) > width:
            text = text[:-2] + "…"
        draw.text((MARGIN + column * (width + MARGIN), y), text, "black", font)

    for column, head in enumerate(heads):
        write(column, 4, head)
    y = LINE + MARGIN
    for row, height in zip(cells, heights, strict=True):
        for column, cell in enumerate(row):
            out.paste(_fit(cell.image, width), (MARGIN + column * (width + MARGIN), y))
            write(column, y + height - LINE - MARGIN, cell.caption)
        y += height
    write_beside(Path(path), lambda part: out.save(part, format="PNG"))


def save_html(heads: Sequence[str], cells: Sequence[Sequence[Cell]], path: str | PathLike[str], width: int = 640) -> None:
    """Write the figure as one HTML file with the images, `width` pixels wide at most, in it."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    for row in cells:
        lines.append("<tr>" + "".join(f"<td>{_img(cell, width)}<br>{html.escape(cell.caption)}</td>" for cell in row) + "</tr>")
    style = "body{font:14px sans-serif}td{vertical-align:top}th{position:sticky;top:0;background:#fff}img{max-width:100%}"
    head = f'<!doctype html><meta charset="utf-8"><title>groupmix-sam compare</title><style>{style}</style>'
    page = "\n".join([head, "<table>", *lines, "</table>", ""])
    write_beside(Path(path), lambda part: part.write_text(page, encoding="utf-8"))


def _img(cell: Cell, width: int) -> str:
    data = io.BytesIO()
    _fit(cell.image, min(width, cell.image.width)).save(data, format="JPEG", quality=90)
    return f'<img alt="{html.escape(cell.caption)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _fit(image: Image.Image, width: int) -> Image.Image:
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def _draw(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], rows: Sequence[Row], which: str) -> Image.Image:
    drawn = draw_masks(image, [decode(row, which) for row in rows])
    for row in rows:
        given = row["given"]
        points, box = given.get("points"), given.get("box")
        drawn = draw_masks(
            np.asarray(drawn),
            [],
            points=None if points is None else np.array(points, dtype=np.float64),
            labels=None if points is None else np.array(given["labels"]),
            box=None if box is None else np.array(box, dtype=np.float64),
        )
    return drawn
