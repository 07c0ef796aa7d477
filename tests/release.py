"""What `make test-all` does beyond `make test`: what takes long and rarely finds anything."""

import os

import pytest

__all__ = ["ALL", "release_only"]

ALL = bool(os.environ.get("GROUPMIX_SAM_TEST_ALL"))
release_only = pytest.mark.skipif(not ALL, reason="takes long: make test-all runs it")
