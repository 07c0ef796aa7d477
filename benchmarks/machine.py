"""What the benchmarks say of the machine that they ran on, and of the spread of what they measured."""

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import groupmix_sam

__all__ = ["describe", "has_bf16", "header", "interval", "peak_kib"]


# Instructions that decide how fast INT8 and bf16 are, by their names in /proc/cpuinfo.
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx512_bf16": "bf16"}


def processor() -> str:
    """Return the processor's name, on Linux with those of its instructions that decide how fast INT8 and bf16 are."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    lines = [[part.strip() for part in line.split(":", 1)] for line in info.read_text().splitlines() if ":" in line]
    facts = dict(reversed(lines))  # those of the first core
    flags = facts.get("flags", "").split()
    named = ", ".join(dict.fromkeys(name for flag, name in INSTRUCTIONS.items() if flag in flags))
    return facts.get("model name", platform.machine()) + (f" ({named})" if named else "")


def has_bf16() -> bool:
    """Return whether the processor has instructions for bf16, as far as Linux says so."""
    return "bf16" in processor()


def header(command: str) -> dict[str, Any]:
    """Return what a file of benchmarks/results begins with: when, how and where its figures came about."""
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    machine |= {"torch": torch.__version__, "timm": timm.__version__, "groupmix-sam": groupmix_sam.__version__}
    return {"date": time.strftime("%Y-%m-%d", time.gmtime()), "command": command, "machine": machine}


def describe() -> str:
    """Return the processor, its threads and the versions, in a line."""
    facts = header("")["machine"]
    name, threads = facts.pop("processor"), facts.pop("threads")
    return ", ".join([f"{name}, {threads} threads", *(f"{part} {version}" for part, version in facts.items())])


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def peak_kib() -> int:
    """Return the most memory that this process ever held; Linux only, as resource.ru_maxrss counts the parent's too."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
