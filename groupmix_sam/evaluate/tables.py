"""Tables as text, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UnknownNameError

__all__ = ["table"]

FORMS = ("csv", "markdown", "text")


def table(cells: Sequence[Sequence[str]], form: str = "text") -> str:
    """Return a table, whose first row is the head, as "text", "markdown" or "csv".

    Raises:
        UnknownNameError: there is no such form.
    """
    out = io.StringIO()
    if form == "csv":
        csv.writer(out, lineterminator="\n").writerows(cells)
        return out.getvalue().rstrip("\n")
    if form not in FORMS:
        raise UnknownNameError.near("form of a table", form, FORMS)
    head, *rows = [[Text(cell) for cell in row] for row in cells]  # Text, as brackets would be markup
    markdown = form == "markdown"
    grid = Table(box=box.MARKDOWN if markdown else None, padding=(0, 1) if markdown else (0, 2, 0, 0), pad_edge=markdown)
    for cell in head:
        grid.add_column(cell, no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    # Wide enough for any table: one that is wrapped or cut cannot be read by a program.
    Console(file=out, width=100_000, color_system=None).print(grid)
    return "\n".join(line.strip() for line in out.getvalue().strip().splitlines())
