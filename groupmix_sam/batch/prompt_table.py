"""Prompts as a table: CSV, JSON or Parquet, on disk or in object storage."""

from os import PathLike

from ..errors import InvalidInputError, MissingExtraError
from ..prompts import COLUMNS, EVERY, LISTS, Prompt, check_columns, group_prompts, parse_prompts
from .storage import Folder, absolute

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as e:
    raise MissingExtraError.of("pyarrow", "ray") from e

__all__ = ["read_prompt_table"]

# One prompt: points in pixels, x before y; their labels, 1 or 0; x0, y0, x1, y1 of a box, or null.
PROMPT = pa.struct({"points": pa.list_(pa.list_(pa.float64())), "labels": pa.list_(pa.int64()), "box": pa.list_(pa.float64())})


def read_prompt_table(path: str | PathLike[str]) -> dict[str, list[Prompt]]:
    """Return a table's prompts in pixels, by the images' paths below the folder.

    Args:
        path: A CSV or JSON file as for `read_prompts`, or a Parquet file, by path or URI. Parquet has the columns of a CSV, or
            `points`, a list of pairs of x and y, `labels`, 1 for foreground and 0 for background, and `box`.

    Raises:
        InvalidInputError: it is no such file, a column is not known, or a prompt is not whole.
    """
    place, _, name = absolute(path).rpartition("/")
    is_parquet = name.lower().endswith(".parquet")
    try:
        data = Folder(place or "/").read(name)
        rows = parquet.read_table(pa.BufferReader(data)) if is_parquet else None
    except (OSError, pa.ArrowException, ValueError) as e:
        raise InvalidInputError(f"the prompts {path} cannot be read ({e}): give a CSV, JSON or Parquet file.") from e
    if rows is not None:
        check_columns(f"{path} has columns", rows.column_names, (*COLUMNS, *LISTS))
        return group_prompts(rows.to_pylist(), str(path))
    prompts = parse_prompts(data, str(path))
    if EVERY in prompts:
        raise InvalidInputError(f"{path} has prompts for no image: give a row for each, with its image.")
    return prompts
