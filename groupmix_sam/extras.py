"""Optional dependencies, imported where they are used."""

from importlib import import_module
from typing import Any

from .errors import MissingExtraError

__all__ = ["import_extra"]


def import_extra(module: str, extra: str) -> Any:
    """Return a module, or raise the error that names the extra which brings it."""
    try:
        return import_module(module)
    except ImportError as e:
        raise MissingExtraError.of(module, extra) from e
