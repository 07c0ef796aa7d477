"""Whether this is `make test-all`, before a release: tests with the mark `release` do more then than in `make test`."""

import os

__all__ = ["ALL"]

ALL = bool(os.environ.get("GROUPMIX_SAM_TEST_ALL"))
