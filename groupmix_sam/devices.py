"""Which device a model runs on, how much memory is free there, and how many threads it gets on a CPU."""

import math
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

from .errors import InvalidInputError, RuntimeUnavailableError

__all__ = ["find_device", "find_threads", "free_memory", "usable_cpus", "use_threads"]


def find_device(name: str | torch.device) -> torch.device:
    """Return a device of PyTorch's by name; "auto" is the first of CUDA, Apple's MPS and the CPU that is there.

    Of several GPUs, each process that `torchrun` started takes its own.

    Raises:
        RuntimeUnavailableError: there is no such device here.
    """
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as e:  # AssertionError: PyTorch without CUDA
        raise RuntimeUnavailableError(f"the device {str(name)!r} cannot be used ({e}): use 'auto' or 'cpu'.") from e
    return device


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that PyTorch could still take on a GPU; None of a CPU, where none is set aside."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return None


def find_threads(threads: int | None = None) -> int | None:
    """Return how many threads a model gets on a CPU, in every runtime.

    That is the number asked for; else that in `OMP_NUM_THREADS`; else the CPUs that the process may use, where those are fewer
    than the machine has. Else it is None, and the runtime decides.

    Raises:
        InvalidInputError: fewer than one are asked for.
    """
    if threads is not None:
        if threads < 1:
            raise InvalidInputError(f"threads is {threads}: give 1 or more.")
        return threads
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a number for each level of nesting
    if told.isdecimal() and int(told) > 0:
        return int(told)
    usable = usable_cpus()
    return usable if usable < (os.cpu_count() or 1) else None


def use_threads(threads: int | None = None) -> None:
    """Give PyTorch what `find_threads` says, for the whole process; one that has fewer already keeps them unless asked."""
    found = find_threads(threads)
    if found is not None and (threads is not None or found < torch.get_num_threads()):
        torch.set_num_threads(found)


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: by its affinity, and by a container's quota, of which a part counts as one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return cpus
    quotas = [float(cpus)]
    for group in groups:
        _, controllers, path = group.split(":", 2)  # version 2 of cgroups names no controllers
        if not controllers or "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            inside = PurePosixPath(path)
            # A container may see the path that it has outside, of which only the mount is there.
            for folder in (inside, *inside.parents):
                with suppress(OSError, ValueError):
                    quotas.append(_quota(mount / str(folder).lstrip("/"), bool(controllers)))
    return max(1, math.ceil(min(quotas)))


def _quota(group: Path, first_version: bool) -> float:
    """Return the CPUs that a cgroup may use; ValueError or OSError if it has no limit."""
    if first_version:
        texts = [(group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
    else:
        texts = (group / "cpu.max").read_text().split()
    quota, period = map(int, texts)
    if quota <= 0:
        raise ValueError(quota)
    return quota / period
