"""Folders, local or in object storage."""

from contextlib import suppress
from os import PathLike
from pathlib import Path
from uuid import uuid4

from ..errors import InvalidInputError, MissingExtraError, SaveError

try:
    import pyarrow as pa
    from pyarrow import fs
except ImportError as e:
    raise MissingExtraError.of("pyarrow", "ray") from e

__all__ = ["Folder", "absolute"]


class Folder:
    """A folder on disk or in object storage, by a path or a URI that pyarrow takes."""

    def __init__(self, where: str) -> None:
        try:
            self.filesystem, self.root = fs.FileSystem.from_uri(absolute(where))
        except (OSError, pa.ArrowException, ValueError, ImportError) as e:
            raise InvalidInputError(f"{where} cannot be opened ({e}): give a path, or a URI such as s3://bucket/folder.") from e

    def names(self, below: str = "") -> set[str]:
        """Return the files in this folder and its subfolders; none if it does not exist."""
        base = f"{self.root.rstrip('/')}/{below}".rstrip("/")
        found = self.filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True))
        try:
            return {file.path.removeprefix(base).lstrip("/") for file in found if file.is_file}
        except UnicodeDecodeError as e:
            raise InvalidInputError(f"{base} has a file whose name is not UTF-8 ({e.object!r}): rename it.") from e

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        with self.filesystem.open_input_file(self._path(name)) as file:
            return bytes(file.read())

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        return bool(self.filesystem.get_file_info(self._path(name)).is_file)

    def write(self, name: str, content: bytes) -> None:
        """Write a file under another name, then rename it, so that it is never there in part."""
        place, _, last = name.rpartition("/")
        part = f"{place}/.{last}.{uuid4().hex}".lstrip("/")
        try:
            self.filesystem.create_dir(self._path(place).rstrip("/"), recursive=True)
            with self.filesystem.open_output_stream(self._path(part)) as file:
                file.write(content)
            self.filesystem.move(self._path(part), self._path(name))
        except OSError as e:
            with suppress(OSError):
                self.delete(part)
            raise SaveError(f"{self._path(name)} could not be written ({e}): free some space, or give another output.") from e

    def delete(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"


def absolute(where: str | PathLike[str]) -> str:
    """Return a path made absolute, with slashes, as workers are elsewhere; a URI as it is."""
    return str(where) if "://" in str(where) else Path(where).absolute().as_posix()
