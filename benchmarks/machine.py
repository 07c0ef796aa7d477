"""What the benchmarks say of the machine that they ran on, and of the spread of what they measured."""

import platform
from pathlib import Path

import numpy as np
import timm
import torch

import groupmix_sam

__all__ = ["describe", "facts", "interval", "peak_kib"]


def facts() -> dict[str, str | int]:
    """Return the processor, its threads and the versions, as result files have them."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "processor": cpu,
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "groupmix-sam": groupmix_sam.__version__,
    }


def describe() -> str:
    """Return the same in a line."""
    known = facts()
    versions = ", ".join(f"{name} {version}" for name, version in list(known.items())[2:])
    return f"{known['processor']}, {known['threads']} threads, {versions}"


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def peak_kib() -> int:
    """Return the most memory that this process ever held; Linux only, as resource.ru_maxrss counts the parent's too."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
