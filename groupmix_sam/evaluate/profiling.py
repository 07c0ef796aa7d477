"""What an encoder costs: parameters, multiply-accumulates, memory, time."""

import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import groupmix_sam.encoders  # noqa: F401  registers the encoders in timm

from ..devices import find_device
from ..errors import InvalidInputError, MissingExtraError, UnknownNameError

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compares versions by distutils
        import thop
except ImportError as e:
    raise MissingExtraError.of("thop", "eval") from e

__all__ = ["Cost", "cost_table", "measure_costs"]

WHOLE = "all"


@dataclass
class Cost:
    """What an encoder, or a part of it, costs at batch 1.

    Attributes:
        encoder: Its name in timm's registry.
        part: "all", or the name of a part.
        parameters: All of them.
        thop_parameters: Those that thop counts: not the ones that lie outside of layers.
        thop_macs: Multiply-accumulates by thop's rules, the paper's: without the products inside an attention.
        macs: Multiply-accumulates of all convolutions and matrix products: half of what torch's flop counter counts.
        peak_mib: The most that one pass's tensors hold at once, see `peak_mib`; None for a part.
        seconds: One for each round.
    """

    encoder: str
    part: str
    parameters: int
    thop_parameters: int
    thop_macs: int
    macs: int
    peak_mib: float | None = None
    seconds: list[float] = field(default_factory=list)


def measure_costs(
    names: Sequence[str], image_size: int = 1024, *, stages: bool = False, rounds: int = 5, device: str = "cpu"
) -> list[Cost]:
    """Measure encoders with random weights on one random image, 1 x 3 x S x S, in fp32.

    Rounds go through all encoders by turns, so that what else the machine does falls on all.

    Args:
        names: Of timm's registry.
        image_size: Side of the image in pixels.
        stages: Measure the stages, and what comes before and after them, too.
        rounds: How often to measure the time; 0 for not at all.
        device: Where memory and time are measured: "auto", "cpu", "cuda" or "mps".

    Raises:
        UnknownNameError: there is no such encoder.
        InvalidInputError: an encoder does not take images of this size.
        RuntimeUnavailableError: there is no such device here.
    """
    if image_size < 1:
        raise InvalidInputError(f"the image size is {image_size}: give a positive number of pixels.")
    where = find_device(device)
    x = torch.randn(1, 3, image_size, image_size, device=where)
    models, costs = {}, {}
    for name in names:
        if not timm.is_model(name):
            raise UnknownNameError.near("encoder", name, timm.list_models())
        models[name] = timm.create_model(name).eval().to(where)
        try:
            costs[name] = _count(name, models[name], x, stages)
        except (AssertionError, RuntimeError) as e:
            raise InvalidInputError(f"{name} does not take images of {image_size} pixels ({e}): try another size.") from e
        costs[name][WHOLE].peak_mib = peak_mib(models[name], x)
    for _ in range(rounds):
        for name, model in models.items():
            for part, seconds in _time(model, x, [part for part in costs[name] if part != WHOLE]).items():
                costs[name][part].seconds.append(seconds)
    return [cost for by_part in costs.values() for cost in by_part.values()]


def cost_table(costs: Sequence[Cost]) -> list[list[str]]:
    """Return the costs as cells, the head first; times are the median, and the least and the most."""
    head = ["encoder", "part", "parameters", "parameters (thop)", "MACs (thop)", "GMACs", "peak MiB", "seconds"]
    cells = [head]
    for c in costs:
        seconds = f"{np.median(c.seconds):.3f} ({min(c.seconds):.3f} to {max(c.seconds):.3f})" if c.seconds else ""
        peak = "" if c.peak_mib is None else f"{c.peak_mib:.0f}"
        numbers = [str(c.parameters), str(c.thop_parameters), str(c.thop_macs), f"{c.macs / 1e9:.3f}", peak]
        cells.append([c.encoder, c.part, *numbers, seconds])
    return cells


@torch.inference_mode()
def _count(name: str, model: nn.Module, x: Tensor, stages: bool) -> dict[str, Cost]:
    counter = FlopCounterMode(display=False)
    with counter:
        model(x)
    flops = {path: sum(by_kind.values()) for path, by_kind in counter.get_flop_counts().items()}
    macs, parameters, layers = thop.profile(model, (x,), verbose=False, ret_layer_info=True)
    total = sum(p.numel() for p in model.parameters())
    costs = {WHOLE: Cost(name, WHOLE, total, int(parameters), int(macs), counter.get_total_flops() // 2)}
    if stages:
        called = _time(model, x, _parts(model))
        for part in (part for part in _parts(model) if part in called):
            found: Any = (0, 0, layers)
            for step in part.split("."):
                found = found[2][step]
            count = sum(p.numel() for p in model.get_submodule(part).parameters())
            part_flops = flops.get(f"{type(model).__name__}.{part}", 0)
            costs[part] = Cost(name, part, count, int(found[1]), int(found[0]), part_flops // 2)
    return costs


def _parts(model: nn.Module) -> list[str]:
    names = []
    for name, child in model.named_children():
        names += [f"{name}.{i}" for i, _ in child.named_children()] if name == "stages" else [name]
    return names


@torch.inference_mode()
def _time(model: nn.Module, x: Tensor, parts: Sequence[str]) -> dict[str, float]:
    """Return the seconds that one pass takes, in all and by part; a part that is never called is left out."""
    began: dict[str, float] = {}
    took: dict[str, float] = {}

    def now() -> float:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        elif x.is_mps:
            torch.mps.synchronize()
        return time.perf_counter()

    def start(part: str) -> Callable[..., None]:
        return lambda *_: began.__setitem__(part, now())

    def stop(part: str) -> Callable[..., None]:
        return lambda *_: took.__setitem__(part, now() - began[part])

    with ExitStack() as hooks:
        for part in parts:
            module = model.get_submodule(part)
            hooks.callback(module.register_forward_pre_hook(start(part)).remove)
            hooks.callback(module.register_forward_hook(stop(part)).remove)
        begin = now()
        model(x)
        return {WHOLE: now() - begin, **took}


@torch.inference_mode()
def peak_mib(model: nn.Module, x: Tensor) -> float:
    """Return the most memory that one pass's tensors hold at once, in MiB: without weights, input and libraries' workspaces."""
    with _Held() as held:
        model(x)
    return held.peak / 2**20


class _Held(TorchDispatchMode):
    """Adds up the memory of the tensors that come and go while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.alive and key not in before:  # else it is a view of what is there
                    self.alive.add(key)
                    self.now += size
                    weakref.finalize(storage, self._gone, key, size)
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.now -= size
