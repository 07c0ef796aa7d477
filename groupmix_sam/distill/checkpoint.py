"""A run's state on disk, from which it goes on bit for bit: one safetensors file, nothing pickled."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import WeightsError
from ..files import checksum, write_beside

__all__ = ["Progress", "load_checkpoint", "save_checkpoint", "save_module"]


class Progress(NamedTuple):
    """How far a run has come: steps taken, and the seconds that they took."""

    step: int = 0
    seconds: float = 0.0


def save_checkpoint(
    path: Path, student: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write a run's state beside `path`, then rename: a failure leaves the checkpoint that was there.

    Raises:
        SaveError: it cannot be written, as when the disk is full.
    """
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    tensors |= {f"student.{k}": v for k, v in student.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    # Clones, as safetensors refuses tensors that share memory.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    metadata = {"progress": json.dumps(progress), "crc32": checksum(tensors)}
    write_beside(path, lambda part: save_file(tensors, part, metadata))


def load_checkpoint(path: Path, student: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Load what `save_checkpoint` wrote, and return how far the run had come.

    Raises:
        WeightsError: the file is damaged or of another student.
    """
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118  it is no dict
            metadata = f.metadata() or {}
        if metadata.get("crc32") != checksum(tensors):
            raise ValueError("its checksum is another")
        progress = Progress(*json.loads(metadata["progress"]))
        student.load_state_dict(_under("student.", tensors))
        average.load_state_dict(_under("average.", tensors))
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError, TypeError) as e:
        raise WeightsError(f"{path} is no whole checkpoint of this run ({e}): begin again with another --output.") from e
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer.", tensors).items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    torch.set_rng_state(tensors["rng"])
    return progress


def save_module(module: nn.Module, path: Path) -> None:
    """Write a module's weights."""
    weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    write_beside(path, lambda part: save_file(weights, part))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
