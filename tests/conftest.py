"""What all tests share: seeds, and the folder of real weights and images that only the developers' machines have."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import groupmix_sam  # noqa: F401  registers the encoders

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes, one thread each
    torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Start each test from one seed and the same number of threads, which a command or `Predictor.from_pretrained` may set."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture
def shared() -> Path:
    if not (SHARED / "weights" / "mobile_sam.safetensors").is_file():
        pytest.skip("needs ../shared, the developers' folder of real weights and photos")
    return SHARED


@pytest.fixture(scope="session")
def fast_graphs(tmp_path_factory) -> Path:
    """The fast weights as ONNX graphs in fp32, for `export(..., graphs=fast_graphs)`: made once for all processes."""
    from groupmix_sam import build_sam_groupmix
    from groupmix_sam.inference.export.onnx import write_graphs

    temporary = tmp_path_factory.getbasetemp()
    folder = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "fast_graphs"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            part = folder.with_suffix(".part")
            part.mkdir(exist_ok=True)
            write_graphs(build_sam_groupmix("fast"), part)
            part.rename(folder)
    return folder


def pytest_terminal_summary(terminalreporter, exitstatus):
    """Say how many cases `tests/faults` ran."""
    counts: Counter[tuple[str, str]] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                for kind, end, cases in dict(report.user_properties).get("faults", []):
                    counts[kind, end] += cases
    if not counts:
        return
    terminalreporter.section("faults")
    for kind in sorted({kind for kind, _ in counts}):
        refused, well = counts[kind, "refused"], counts[kind, "well"]
        terminalreporter.line(f"{kind}: {refused + well} cases, {refused} refused by an error of ours, {well} ended well")
    lost = "nothing was lost" if exitstatus == 0 else "see the failures above"
    terminalreporter.line(f"{counts.total()} cases in all: {lost}")
