"""Prompts as a table: CSV, JSON or Parquet."""

from os import PathLike
from typing import Any

from ..errors import InvalidInputError, MissingExtraError
from ..prompts import COLUMNS, LISTS, as_prompt, check_columns
from .storage import Folder, absolute

try:
    import pyarrow as pa
    from pyarrow import csv, parquet
except ImportError as e:
    raise MissingExtraError.of("pyarrow", "ray") from e

__all__ = ["read_prompt_table"]

# One prompt: points in pixels, x before y; their labels, 1 or 0; left, top, right and bottom of a box, or null.
PROMPT = pa.struct({"points": pa.list_(pa.list_(pa.float64())), "labels": pa.list_(pa.int64()), "box": pa.list_(pa.float64())})


def read_prompt_table(path: str | PathLike[str]) -> dict[str, list[dict[str, Any]]]:
    """Return a table's prompts in pixels, by image: "points", "labels" and "box" each.

    A row is a prompt: `image`, its path below the folder; and `x` and `y`, or `left`, `top`, `right` and `bottom`, or all.
    A Parquet file may have instead `points`, a list of pairs of x and y; `labels`, 1 for foreground and 0 for background, all 1
    if left out; and `box`. `category` may be there and is not read.

    Raises:
        InvalidInputError: it is no CSV or Parquet file, a column is not known, or a prompt is not whole.
    """
    place, _, name = absolute(path).rpartition("/")
    is_parquet = name.lower().endswith(".parquet")
    try:
        data = pa.BufferReader(Folder(place or "/").read(name))
        if is_parquet:
            table = parquet.read_table(data)
        else:
            table = csv.read_csv(data, convert_options=csv.ConvertOptions(column_types={"image": pa.string()}))
        rows = table.to_pylist()
    except (OSError, pa.ArrowException, ValueError) as e:
        raise InvalidInputError(f"the prompts {path} cannot be read ({e}): give a CSV or a Parquet file.") from e
    check_columns(f"{path} has columns", table.column_names, (*COLUMNS, *LISTS) if is_parquet else COLUMNS)
    prompts: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        try:
            if not isinstance(row["image"], str):
                raise TypeError("image")
            prompt = as_prompt({name: value for name, value in row.items() if value is not None})
            given = {"points": prompt.points, "labels": prompt.labels, "box": prompt.box}
            prompts.setdefault(row["image"], []).append(given)
        except (KeyError, OverflowError, TypeError, ValueError) as e:
            raise InvalidInputError(
                f"prompt {number} of {path} is {row!r}: give image, and x and y or left, top, right and bottom."
            ) from e
    if not prompts:
        raise InvalidInputError(f"{path} has no prompt in it: write a row a prompt, image,left,top,right,bottom.")
    return prompts
