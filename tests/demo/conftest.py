"""The tiny Sam of the tests of deployment."""

from ..deploy.conftest import sam  # noqa: F401
