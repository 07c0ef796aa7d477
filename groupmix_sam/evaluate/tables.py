"""Tables as text, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from ..errors import UnknownNameError

__all__ = ["aligned", "table"]

Cells = Sequence[Sequence[str]]


def table(cells: Cells, form: str = "text") -> str:
    """Return a table, its first line the head, as "text", "markdown" or "csv"."""
    if form == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(cells)
        return out.getvalue().rstrip("\n")
    if form == "markdown":
        head, *rows = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([head, "|" + "---|" * len(cells[0]), *rows])
    if form == "text":
        return "\n".join(aligned(cells))
    raise UnknownNameError.near("form of a table", form, ("csv", "markdown", "text"))


def aligned(cells: Cells) -> list[str]:
    """Return a table's lines, columns padded."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
