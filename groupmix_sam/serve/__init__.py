"""Masks over HTTP: the model and its images (`engine`), what comes back (`render`), the server (`app`, the extra "serve")."""

from .engine import Engine, Limits

__all__ = ["Engine", "Limits"]
