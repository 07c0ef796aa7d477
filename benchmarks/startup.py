"""Measure what starting takes: the imports, and the command line up to --help and --version.

    git worktree add ../before REVISION
    python benchmarks/startup.py --before ../before

Each start is a Python process of its own. Rounds go through all starts by turns, so that what else the machine does falls on
all; the first round warms the disk cache and does not count. Seconds are the processor's, user and system, and by the clock:
the median, and the least and the most.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import describe

# Before the command line had an entry point of its own, it was the package's.
COMMAND = """
import sys
try:
    from groupmix_sam_cli import main
except ImportError:
    from groupmix_sam.cli import main
sys.argv = ["groupmix-sam", {!r}]
main()
"""
STARTS = {
    "import torch": "import torch",
    "import timm": "import timm",
    "import groupmix_sam": "import groupmix_sam",
    "groupmix-sam --help": COMMAND.format("--help"),
    "groupmix-sam --version": COMMAND.format("--version"),
}


def measure(code: str, tree: Path) -> tuple[float, float]:
    """Return the seconds of the processor and of the clock that a new interpreter takes for code, with a tree's package."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, time.perf_counter() - began


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    trees = {"now": Path(__file__).parents[1]}
    if args.before is not None:
        trees = {"before": args.before, **trees}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {(start, tree): [] for start in STARTS for tree in trees}
    for _ in range(args.rounds + 1):
        for (start, tree), seconds in found.items():
            seconds.append(measure(STARTS[start], trees[tree]))
    print(describe())
    print(f"{args.rounds} rounds\n\n| start | tree | processor's seconds | seconds by the clock |\n|---|---|---|---|")
    for (start, tree), seconds in found.items():
        processor, clock = zip(*seconds[1:], strict=True)
        print(f"| `{start}` | {tree} | {spread(list(processor))} | {spread(list(clock))} |")


if __name__ == "__main__":
    main()
