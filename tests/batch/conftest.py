"""The tiny Sam of the tests of inference."""

from ..inference.conftest import sam  # noqa: F401
