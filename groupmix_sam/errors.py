"""The package's exceptions. Each is also the built-in that one would expect, and each message ends with what to do."""

import difflib
import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

__all__ = [
    "BusyError",
    "GroupMixSamError",
    "ImageReadError",
    "InvalidInputError",
    "MissingExtraError",
    "NoImageError",
    "ParityError",
    "RunStoppedError",
    "RuntimeUnavailableError",
    "SaveError",
    "UnknownNameError",
    "WeightsError",
    "WeightsNotFoundError",
    "import_extra",
    "without_secrets",
]

# What stands before a URL's host, and what follows names such as "password=" up to the next parameter.
USER = re.compile(r"(?<=://)[^\s/'\"]+@")
SECRET = re.compile(r"((?:pass|passwd|password|pw|pwd|token|key|secret|sig|signature)=)[^\s&;,'\"]+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Return a text with stars for the users, passwords and keys in its URLs."""
    return SECRET.sub(r"\1***", USER.sub("***@", text))


class GroupMixSamError(Exception):
    """Base of every exception that this package raises on purpose; no message has a URL's password in it."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.args = tuple(without_secrets(arg) if isinstance(arg, str) else arg for arg in args)


class InvalidInputError(GroupMixSamError, ValueError):
    """An argument, an image or a prompt that cannot be used."""


class ImageReadError(GroupMixSamError, OSError):
    """An image that is not there or cannot be decoded."""


class UnknownNameError(GroupMixSamError, KeyError):
    """A name that is not registered; the message lists near matches."""

    @classmethod
    def near(cls, what: str, name: object, known: Iterable[str]) -> "UnknownNameError":
        """Return the error for a name that is not among the known."""
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
        return cls(f"there is no {what} {name!r}: {hint}")

    def __str__(self) -> str:  # KeyError would show the repr of its argument
        return str(self.args[0])


class RunStoppedError(GroupMixSamError, InterruptedError):
    """A run that was stopped and has saved what it needs to resume."""


class SaveError(GroupMixSamError, OSError):
    """A file that could not be written; what was there before is as it was."""


class WeightsError(GroupMixSamError, RuntimeError):
    """Weights that are damaged, of another architecture, or not of a format that can be read safely."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """Weights that are not where they were looked for, on disk or on the Hugging Face Hub."""

    def __str__(self) -> str:  # FileNotFoundError would try to format errno and file name
        return str(self.args[0])


class NoImageError(GroupMixSamError, RuntimeError):
    """Masks were asked for before there was an image, as `SamPredictor` says it."""


class RuntimeUnavailableError(GroupMixSamError, RuntimeError):
    """An inference runtime, provider, driver or device that is not there or did not take the model."""


class ParityError(GroupMixSamError, RuntimeError):
    """An exported model whose masks are not those of the model that it was made from."""


class BusyError(GroupMixSamError, RuntimeError):
    """More requests than a server lets wait; `seconds` is when to ask again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class MissingExtraError(GroupMixSamError, ImportError):
    """An optional dependency that is not installed; the message names the extra that brings it."""

    @classmethod
    def of(cls, module: str, extra: str) -> "MissingExtraError":
        """Return the error for a module that an extra would bring."""
        return cls(f"{module!r} is not installed: run `pip install 'groupmix-sam[{extra}]'`.")


def import_extra(module: str, extra: str) -> Any:
    """Return a module, or raise the error that names the extra which brings it."""
    try:
        return import_module(module)
    except ImportError as e:
        raise MissingExtraError.of(module, extra) from e
