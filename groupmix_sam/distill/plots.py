"""Images of a run: the teacher's and the student's features side by side (the paper's Fig. 2), and the loss."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..encoders.config import SAM_MEAN, SAM_STD
from ..errors import MissingExtraError
from ..files import write_beside

__all__ = ["DECODER_CURVES", "FEATURE_CURVES", "LABEL_CURVES", "Curves", "draw_features", "plot_log", "stack_images"]

TILE = 192
CHANNELS = (0, 64, 128)


def draw_features(image: Tensor, teacher: Tensor, student: Tensor, label: str) -> Image.Image:
    """Draw a row: the image, then the teacher's and the student's features, as colours and as single channels in turn.

    The colours are the teacher's first three principal components, for both. Channels are drawn on the teacher's scale.

    Args:
        image: 3 x H x W, normalised.
        teacher: h x w x 256, without padding.
        student: The same.
        label: Written into the image.
    """
    ours, theirs = (np.asarray(m.detach().float().cpu(), dtype=np.float64) for m in (student, teacher))
    mean = theirs.mean((0, 1))
    _, _, components = np.linalg.svd((theirs - mean).reshape(-1, theirs.shape[-1]), full_matrices=False)
    pairs = [((theirs - mean) @ components[:3].T, (ours - mean) @ components[:3].T)]
    pairs += [(theirs[..., [i, i, i]], ours[..., [i, i, i]]) for i in CHANNELS]
    colors = (image.detach().float().cpu().permute(1, 2, 0).numpy() * SAM_STD + SAM_MEAN) * 255
    tiles = [_tile(colors.clip(0, 255).astype(np.uint8), Image.Resampling.BILINEAR)]
    for pair in pairs:
        low, high = np.percentile(pair[0], (2, 98), axis=(0, 1))
        for values in pair:
            scaled = ((values - low) / np.maximum(high - low, 1e-9)).clip(0, 1) * 255
            tiles.append(_tile(scaled.astype(np.uint8), Image.Resampling.NEAREST))
    names = [label, "teacher, PCA", "student"]
    names += [name for i in CHANNELS for name in (f"teacher, channel {i}", "student")]
    row = Image.new("RGB", ((TILE + 4) * len(tiles), max(t.height for t in tiles) + 16), "white")
    draw = ImageDraw.Draw(row)
    for i, (tile, name) in enumerate(zip(tiles, names, strict=True)):
        draw.text((i * (TILE + 4) + 2, 2), name, fill="black")
        row.paste(tile, (i * (TILE + 4), 16))
    return row


def stack_images(paths: Sequence[Path], output: Path) -> None:
    """Write images below each other into one, as PNG."""
    rows = []
    for path in paths:
        with Image.open(path) as file:
            rows.append(file.convert("RGB"))
    whole = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    write_beside(output, lambda part: whole.save(part, format="PNG"))


class Curves(NamedTuple):
    """What is plotted of a log: the column of the loss and of the score, each with its label."""

    loss: tuple[str, str]
    score: tuple[str, str]


FEATURE_CURVES = Curves(("features", "loss on the features"), ("r2", "R2 on held-out images"))
DECODER_CURVES = Curves(("masks", "loss on the masks"), ("box_iou", "IoU with the teacher by box, held-out images"))

LABEL_CURVES = Curves(("masks", "loss on the masks"), ("box_iou", "IoU with the labels by box, held-out images"))


def plot_log(log: Path, output: Path, curves: Curves = FEATURE_CURVES) -> None:
    """Plot a stage's log.csv, loss and score over steps, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError.of("matplotlib", "distill") from e
    with log.open(newline="") as f:
        rows: list[dict[str, Any]] = list(csv.DictReader(f))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    for axis, (column, label), style, color in ((left, curves.loss, "-", "#0072B2"), (right, curves.score, "o-", "#D55E00")):
        filled = [row for row in rows if row[column]]
        axis.plot([int(row["step"]) for row in filled], [float(row[column]) for row in filled], style, color=color)
        axis.set_ylabel(label, color=color)
    left.set(xlabel="step", yscale="log")
    write_beside(output, lambda part: figure.savefig(part, format="png", dpi=120))


def _tile(pixels: NDArray[np.uint8], resample: Image.Resampling) -> Image.Image:
    height, width = pixels.shape[:2]
    scale = TILE / max(height, width)
    return Image.fromarray(pixels).resize((max(1, round(width * scale)), max(1, round(height * scale))), resample)
