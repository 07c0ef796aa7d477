"""Time and peak memory of our encoder, as it is and fused, against MobileSAM's, side by side in one run.

    python benchmarks/encoder.py
    python benchmarks/encoder.py --dtype bfloat16

All run in eager PyTorch, batch 1, at 1024 x 1024, by turns, so that what else the machine does falls on all. Weights are
random: they do not matter here. "Products" are the matrix products of our linear layers and nothing else, into memory that is
there. Peak memory is that of a process of its own over one forward pass, less what it held before.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from machine import describe, interval

import groupmix_sam  # noqa: F401  registers the encoders
from groupmix_sam.deploy import fuse

OURS, FUSED, PRODUCTS, THEIRS = "gmf_sam_2282", "gmf_sam_2282 fused", "its products", "sam_tiny_vit_5m"


class Products(torch.nn.Module):
    """The matrix products of a model's linear layers for an input of one size."""

    def __init__(self, model: torch.nn.Module, x: torch.Tensor) -> None:
        super().__init__()
        self.operands: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        buffers: dict[torch.Size, torch.Tensor] = {}

        def record(layer: torch.nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            a, out = (buffers.setdefault(t.flatten(0, -2).shape, t.flatten(0, -2).clone()) for t in (inputs[0], output))
            self.operands.append((a, layer.weight.T, out))

        handles = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, torch.nn.Linear)]
        with torch.inference_mode():
            model(x)
        for handle in handles:
            handle.remove()

    def forward(self, x: torch.Tensor) -> None:
        for a, b, out in self.operands:
            torch.mm(a, b, out=out)


def build(name: str, size: int, dtype: torch.dtype) -> torch.nn.Module:
    model = timm.create_model(THEIRS if name == THEIRS else OURS).eval().to(dtype)
    if name == PRODUCTS:
        return Products(model, torch.randn(1, 3, size, size, dtype=dtype))
    return fuse(model) if name == FUSED else model


@torch.inference_mode()
def seconds(model: torch.nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def peak_resident_kib() -> int:
    """Return the most memory that this process ever held; Linux only, as resource.ru_maxrss counts the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@torch.inference_mode()
def peak_mib(name: str, size: int, dtype: torch.dtype) -> float:
    """Return the growth of this process's peak memory over one forward pass, in MiB."""
    model, x = build(name, size, dtype), torch.randn(1, 3, size, size, dtype=dtype)
    model(x[:, :, :64, :64])  # what is set up once does not count
    before = peak_resident_kib()
    model(x)
    return (peak_resident_kib() - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--peak", metavar="ENCODER", help="print the peak memory of one encoder and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    if args.peak:
        print(peak_mib(args.peak, args.size, dtype))
        return

    models = {name: build(name, args.size, dtype) for name in (OURS, FUSED, PRODUCTS, THEIRS)}
    x = torch.randn(1, 3, args.size, args.size, dtype=dtype)
    for model in models.values():
        seconds(model, x)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            times[name].append(seconds(model, x))
    command = [sys.executable, __file__, "--size", str(args.size), "--threads", str(args.threads), "--dtype", args.dtype]
    peaks = {
        name: float(subprocess.run([*command, "--peak", name], capture_output=True, text=True, check=True).stdout)
        for name in (OURS, FUSED, THEIRS)
    }

    print(describe())
    print(f"1 x 3 x {args.size} x {args.size}, {args.dtype}, eager, {args.rounds} rounds by turns")
    for name in models:
        memory = f", {peaks[name]:.0f} MiB peak" if name in peaks else ""
        print(f"  {name:18} {statistics.median(times[name]):.3f} s median, {min(times[name]):.3f} s least{memory}")
    for ours, theirs in ((OURS, THEIRS), (FUSED, THEIRS), (FUSED, PRODUCTS)):
        ratios = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
        _, low, high = interval(ratios)
        print(f"  {ours} to {theirs}: time {statistics.median(ratios):.3f} (95 % interval of the median {low:.3f} to ", end="")
        print(f"{high:.3f}; of the least times {min(times[ours]) / min(times[theirs]):.3f})", end="")
        print(f", memory {peaks[ours] / peaks[theirs]:.3f}" if theirs in peaks else "")


if __name__ == "__main__":
    main()
