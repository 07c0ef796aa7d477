"""Summaries of results, with intervals, and comparisons of two results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .dataset import Row
from .results import Result
from .tables import table

__all__ = ["Comparison", "Figure", "check_comparable", "compare", "compare_text", "result_name", "summarize", "summary_text"]

DRAWS = 2000
# COCO's sizes by area in pixels; a limit belongs to both sides.
SIZES = {"all": (0.0, np.inf), "S": (0.0, 32.0**2), "M": (32.0**2, 96.0**2), "L": (96.0**2, np.inf)}


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval, by bootstrap over images."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Line:
    """The figures of one kind of prompt and one size of instance.

    Attributes:
        prompt: The prompt's kind.
        mask_selection: How the mask was chosen.
        size: "all", or COCO's "S", "M" or "L".
        count: Number of masks.
        iou: Their mean IoU.
        boundary_iou: Their mean boundary IoU.
        box_baseline: The mean IoU of the box baseline.
        iou_error: Mean absolute error of the predicted IoU.
        under_half: Share of masks with an IoU under 0.5.
        share: The model's gain over the box baseline as a share of the reference's; None if there is none.
    """

    prompt: str
    mask_selection: str
    size: str
    count: int
    iou: Figure
    boundary_iou: Figure
    box_baseline: Figure
    iou_error: Figure
    under_half: Figure
    share: Figure | None


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two results in one kind of prompt, B minus A.

    Attributes:
        prompt: The prompt's kind.
        count: The masks.
        a: A's mean IoU.
        b: B's mean IoU.
        box_baseline: The mean IoU of the box baseline.
        difference: Difference of the mean IoUs.
        ratio: B's mean IoU over A's; None if A's is 0.
        share: B's gain over the box baseline as a share of A's; None where A gains nothing.
        images: Names and mean differences, the worst first.
    """

    prompt: str
    count: int
    a: Figure
    b: Figure
    box_baseline: Figure
    difference: Figure
    ratio: Figure | None
    share: Figure | None
    images: list[tuple[str, float]]


def summarize(result: Result, reference: Result | None = None, seed: int = 0) -> list[Line]:
    """Return a line for each kind of prompt, and for each of COCO's sizes below it.

    Args:
        result: The result.
        reference: Another result of the same protocol and data, to compute the share of its gain over the box baseline.
        seed: Seed of the bootstrap.

    Raises:
        InvalidInputError: the reference is of another protocol or data.
    """
    if reference is not None:
        check_comparable(reference, result)
    lines = []
    for prompt in _prompts(result):
        for size, (least, most) in SIZES.items():
            chosen = [row for row in result.rows if row["prompt"] == prompt and least <= row["area"] <= most]
            if not chosen:
                continue
            bootstrap = _Bootstrap(chosen, seed)
            share = None
            if reference is not None:
                share = _share(bootstrap, _partners(chosen, reference), chosen)
            figures = {
                "iou": bootstrap.mean(_values(chosen, "iou")),
                "boundary_iou": bootstrap.mean(_values(chosen, "boundary_iou")),
                "box_baseline": bootstrap.mean(_values(chosen, "box_baseline_iou")),
                "iou_error": bootstrap.mean(abs(_values(chosen, "predicted_iou") - _values(chosen, "iou"))),
                "under_half": bootstrap.mean(_values(chosen, "iou") < 0.5),
            }
            mask_selection = result.protocol["prompts"].get(prompt, "")
            lines.append(Line(prompt, mask_selection, size, len(chosen), share=share, **figures))
    return lines


def compare(a: Result, b: Result, seed: int = 0) -> list[Comparison]:
    """Return how B differs from A for each kind of prompt, paired by mask.

    Raises:
        InvalidInputError: they are of different protocols or data.
    """
    check_comparable(a, b)
    comparisons = []
    for prompt in _prompts(b):
        ours = [row for row in b.rows if row["prompt"] == prompt]
        theirs, bootstrap = _partners(ours, a), _Bootstrap(ours, seed)
        iou_a, iou_b = _values(theirs, "iou"), _values(ours, "iou")
        difference = iou_b - iou_a
        totals = np.bincount(bootstrap.image, difference) / np.bincount(bootstrap.image)
        comparisons.append(
            Comparison(
                prompt=prompt,
                count=len(ours),
                a=bootstrap.mean(iou_a),
                b=bootstrap.mean(iou_b),
                box_baseline=bootstrap.mean(_values(ours, "box_baseline_iou")),
                difference=bootstrap.mean(difference),
                ratio=bootstrap.ratio(iou_b, iou_a),
                share=_share(bootstrap, theirs, ours),
                images=sorted(zip(bootstrap.names, totals.tolist(), strict=True), key=lambda pair: pair[1]),
            )
        )
    return comparisons


def check_comparable(a: Result, b: Result) -> None:
    """Raise InvalidInputError unless two results are of one protocol and of the same data."""
    if a.kind == "detections":
        raise InvalidInputError("detections have no true mask each: compare their AP.")
    for what in ("kind", "protocol"):
        if getattr(a, what) != getattr(b, what):
            raise InvalidInputError(
                f"the results differ in their {what}, {getattr(a, what)} and {getattr(b, what)}: evaluate both the same way."
            )
    for what in ("sha256", "images_sha256", "points_per_side", "confidence", "reference"):
        if a.data.get(what) != b.data.get(what):
            raise InvalidInputError(f"the results are of different data, their {what} differ: evaluate both on the same data.")


def summary_text(result: Result, reference: Result | None = None) -> str:
    """Return the summary as a table to print."""
    lines = summarize(result, reference)
    images = len({row["image"] for row in result.rows})
    head = f"{result_name(result)}: {images} images, {result.kind}, preset {result.protocol['name']}"
    if result.kind == "reference":
        head += f", the truth is {result.data['reference']['name']}'s"
    columns = ["prompt", "mask", "size", "masks", "mIoU", "boundary IoU", "IoU error", "under 0.5", "box baseline"]
    if reference is not None:
        columns.append(f"share of {result_name(reference)}'s gain")
    cells = []
    for line in lines:
        row = [line.prompt, line.mask_selection, line.size, str(line.count), str(line.iou), f"{line.boundary_iou.value:.3f}"]
        row += [f"{line.iou_error.value:.3f}", f"{line.under_half.value:.3f}", str(line.box_baseline)]
        if reference is not None:
            row.append("-" if line.share is None else str(line.share))
        cells.append(row)
    note = "Intervals: 95 %, by bootstrap over images. Box baseline: the IoU of the true mask's bounding box, taken as a mask."
    return "\n".join([head, table([columns, *cells]), note])


def compare_text(a: Result, b: Result, images: int = 5) -> str:
    """Return a comparison as a table to print, with the images where B loses and gains most."""
    lines = [f"A is {result_name(a)}, B is {result_name(b)}; paired by mask, intervals of 95 % by bootstrap over images"]
    cells = [["prompt", "masks", "A", "B", "B - A", "B / A", "box baseline", "share of A's gain over the box baseline"]]
    comparisons = compare(a, b)
    for c in comparisons:
        figures = (c.a, c.b, c.difference, c.ratio, c.box_baseline, c.share)
        cells.append([c.prompt, str(c.count), *("-" if figure is None else str(figure) for figure in figures)])
    lines.append(table(cells))
    for c in comparisons:
        for what, chosen in (("worst", c.images[:images]), ("best", c.images[::-1][:images])):
            lines.append(f"{c.prompt}, B's {what}: " + ", ".join(f"{name} {change:+.3f}" for name, change in chosen))
    return "\n".join(lines)


class _Bootstrap:
    """Draws of images with replacement. Means are over the masks of the drawn images."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        numbers: dict[str, int] = {}
        self.image = np.array([numbers.setdefault(row["image"], len(numbers)) for row in rows])
        self.names = list(numbers)
        rng, n = np.random.default_rng(seed), len(numbers)
        # how often each image is drawn, DRAWS x images
        self.drawn = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(DRAWS)])

    def mean(self, values: Any) -> Figure:
        """Return the mean of one value a mask."""
        figure = self.ratio(values, np.ones(len(self.image)))
        assert figure is not None
        return figure

    def ratio(self, above: Any, below: Any) -> Figure | None:
        """Return the ratio of two sums; None if the lower one is not above 0 within its interval."""
        total_above, total_below = np.bincount(self.image, above), np.bincount(self.image, below)
        drawn_below = self.drawn @ total_below
        if total_below.sum() <= 0 or np.quantile(drawn_below, 0.025) <= 0:
            return None
        kept = drawn_below > 0
        low, high = np.quantile((self.drawn @ total_above)[kept] / drawn_below[kept], [0.025, 0.975])
        return Figure(float(total_above.sum() / total_below.sum()), float(low), float(high))


def _share(bootstrap: _Bootstrap, reference: Sequence[Row], rows: Sequence[Row]) -> Figure | None:
    box = _values(rows, "box_baseline_iou")
    return bootstrap.ratio(_values(rows, "iou") - box, _values(reference, "iou") - box)


def _partners(rows: Sequence[Row], other: Result) -> list[Row]:
    """Return the other result's row for each row."""
    found = {(row["image"], row["id"], row["prompt"]): row for row in other.rows}
    try:
        return [found[row["image"], row["id"], row["prompt"]] for row in rows]
    except KeyError as e:
        raise InvalidInputError(f"one result has no mask for {e}, the other has: evaluate both on the same data.") from e


def _values(rows: Sequence[Row], key: str) -> NDArray[np.float64]:
    return np.array([row[key] for row in rows], dtype=np.float64)


def _prompts(result: Result) -> list[str]:
    return list(dict.fromkeys(row["prompt"] for row in result.rows))


def result_name(result: Result) -> str:
    digest = result.model["sha256"]
    return f"{result.model['name']} ({digest[:8]})" if digest else str(result.model["name"])
