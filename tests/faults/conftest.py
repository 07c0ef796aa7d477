"""Counts the cases; `tests/conftest.py` says in the end how many there were and what became of them."""

from collections import Counter, defaultdict

import pytest

from groupmix_sam.errors import GroupMixSamError

COUNTS: Counter[tuple[str, str]] = Counter()


@pytest.fixture
def attempt():
    """A function that reads what may be damaged: an error of ours is counted and None returned, another fails the test.

    Of each kind some must be refused and some read, or what a test checks of the ones or the others would never run.
    """
    ends = defaultdict(set)

    def run(kind, read):
        try:
            result = read()
        except GroupMixSamError:
            end, result = "refused", None
        else:
            end = "well"
        COUNTS[kind, end] += 1
        ends[kind].add(end)
        return result

    yield run
    for kind, found in ends.items():
        assert found == {"refused", "well"}, f"{kind}: all of it ended alike"


@pytest.fixture(scope="session")
def refuse():
    """A function that reads what must be refused by an error of ours, and counts it."""

    def run(kind, read):
        with pytest.raises(GroupMixSamError):
            read()
        COUNTS[kind, "refused"] += 1

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
