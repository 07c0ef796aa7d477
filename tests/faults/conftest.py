"""Counts the cases; `tests/conftest.py` says in the end how many there were and what became of them."""

from collections import Counter

import pytest

from groupmix_sam.errors import GroupMixSamError

COUNTS: Counter[tuple[str, str]] = Counter()


@pytest.fixture(scope="session")
def attempt():
    """A function that reads something damaged: an error of ours is counted and None returned, another fails the test."""

    def run(kind, read):
        try:
            result = read()
        except GroupMixSamError:
            COUNTS[kind, "refused"] += 1
            return None
        COUNTS[kind, "well"] += 1
        return result

    return run


@pytest.fixture(scope="session")
def count():
    """A function that counts cases that came to a good end."""

    def add(kind, cases=1):
        COUNTS[kind, "well"] += cases

    return add


@pytest.fixture(autouse=True)
def _tell(record_property):
    """Have a test's report say what it counted, as tests run in several processes."""
    before = COUNTS.copy()
    yield
    record_property("faults", [(*key, n) for key, n in (COUNTS - before).items()])
