"""Counts the cases, and says in the end how many there were and what became of them."""

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


def pytest_terminal_summary(terminalreporter, exitstatus):
    if not COUNTS:
        return
    terminalreporter.section("faults")
    for kind in sorted({kind for kind, _ in COUNTS}):
        refused, well = COUNTS[kind, "refused"], COUNTS[kind, "well"]
        terminalreporter.line(f"{kind}: {refused + well} cases, {refused} refused by an error of ours, {well} ended well")
    lost = "nothing was lost" if exitstatus == 0 else "see the failures above"
    terminalreporter.line(f"{sum(COUNTS.values())} cases in all: {lost}")
