"""What PyTorch takes on a CPU for ours and for MobileSAM: encoder, image and prompt, 32 prompts; and what was aimed at.

    python benchmarks/encoder.py

All run in eager PyTorch, batch 1, at 1024 x 1024, by turns, so that what else the machine does falls on all. Weights are
random: they do not matter here. "Products" are the matrix products of our linear layers and nothing else, into memory that is
there. An image is of 480 x 640, from array to one box's mask in its size: our `Predictor` against the stock `SamPredictor`
with MobileSAM. The decoders get features and 32 points. Peak memory is that of a process of its own over one forward pass, less
what it held before. The profile is of one pass of the fused encoder, each operation without those that it calls.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from machine import describe, interval, peak_kib
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from groupmix_sam import build_sam_groupmix
from groupmix_sam.inference import Predictor, fuse_encoder
from groupmix_sam.inference.fused_decoder import FusedDecoder

NAME, THEIR_NAME = "gmf_sam_2282", "sam_tiny_vit_5m"
OURS, FUSED, PRODUCTS, THEIRS = f"{NAME} as it trains", f"{NAME} fused", "its products", THEIR_NAME
FUSED_BF16, THEIRS_BF16 = f"{FUSED} bf16", f"{THEIRS} bf16"
WHOLE, STOCK_WHOLE = f"Predictor, {NAME}", f"SamPredictor, {THEIR_NAME}"
DECODER, STOCK_DECODER = "32 prompts, ours", "32 prompts, stock"
MODELS = (OURS, FUSED, PRODUCTS, THEIRS, FUSED_BF16, THEIRS_BF16)
# What was to be reached, of the first to the second: time and peak memory.
AIMS = (
    (OURS, THEIRS, None, None),
    (FUSED, THEIRS, 0.36, 0.5),
    (FUSED, PRODUCTS, 1.4, None),
    (FUSED_BF16, THEIRS_BF16, 0.30, 0.5),
    (WHOLE, STOCK_WHOLE, 0.40, None),
    (DECODER, STOCK_DECODER, 0.5, None),
)


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


def build(name: str, size: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return one of MODELS and an input in its dtype."""
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    model = timm.create_model(THEIR_NAME if name.startswith(THEIR_NAME) else NAME).eval().to(dtype)
    x = torch.randn(1, 3, size, size, dtype=dtype)
    if name == PRODUCTS:
        return Products(model, x), x
    return (fuse_encoder(model) if name.startswith(FUSED) else model), x


def whole(predictor: Predictor | SamPredictor) -> Callable[[], object]:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)

    def run() -> None:
        predictor.set_image(image)
        predictor.predict(box=np.array([100.0, 80, 420, 380]), multimask_output=False)

    return run


def decoders(sam: Sam, size: int) -> dict[str, Callable[[], object]]:
    """Return our decoder and the stock one, each from features and 32 points to all masks' logits."""
    ours, features = FusedDecoder(sam), torch.randn(1, 256, size // 16, size // 16)
    points, labels = size * torch.rand(32, 1, 2), torch.ones(32, 1)
    padded = torch.cat([points, torch.zeros(32, 1, 2)], dim=1), torch.cat([labels, -torch.ones(32, 1)], dim=1)

    def stock() -> None:
        sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
        sam.mask_decoder.predict_masks(features, sam.prompt_encoder.get_dense_pe(), sparse, dense)

    return {DECODER: lambda: ours(ours.image(features), *padded), STOCK_DECODER: stock}


@torch.inference_mode()
def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.inference_mode()
def peak_mib(name: str, size: int) -> float:
    """Return the growth of this process's peak memory over one forward pass, in MiB."""
    model, x = build(name, size)
    model(x[:, :, :64, :64])  # what is set up once does not count
    before = peak_kib()
    model(x)
    return (peak_kib() - before) / 1024


@torch.inference_mode()
def profile(name: str, size: int) -> None:
    model, x = build(name, size)
    model(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        model(x)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"where the time of {name} goes, {total / 1e6:.3f} s")
    for event in events[:12]:
        print(f"  {event.self_cpu_time_total / total:6.1%} {event.key} x {event.count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", choices=MODELS, help="print the peak memory of one encoder and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_mib(args.peak, args.size))
        return

    runs: dict[str, Callable[[], object]] = {}
    for name in MODELS:
        model, x = build(name, args.size)
        runs[name] = lambda model=model, x=x: model(x)
    ours, theirs = (build_sam_groupmix(None, encoder=name, image_size=args.size).eval() for name in (NAME, THEIR_NAME))
    runs |= {WHOLE: whole(Predictor(ours)), STOCK_WHOLE: whole(SamPredictor(theirs)), **decoders(theirs, args.size)}
    for run in runs.values():
        seconds(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    command = [sys.executable, __file__, "--size", str(args.size), "--threads", str(args.threads)]
    peaks = {
        name: float(subprocess.run([*command, "--peak", name], capture_output=True, text=True, check=True).stdout)
        for name in MODELS
        if name != PRODUCTS
    }

    print(describe())
    print(f"{args.size} x {args.size}, eager, {args.rounds} rounds by turns")
    for name in runs:
        memory = f", {peaks[name]:.0f} MiB peak" if name in peaks else ""
        print(f"  {name:29} {statistics.median(times[name]):.3f} s median, {min(times[name]):.3f} s least{memory}")
    print("ratios of times with the 95 % interval of the median, and of peak memory")
    for ours_name, theirs_name, time_aim, memory_aim in AIMS:
        middle, low, high = interval([a / b for a, b in zip(times[ours_name], times[theirs_name], strict=True)])
        print(f"  {ours_name} to {theirs_name}: {middle:.3f} ({low:.3f} to {high:.3f}){verdict(middle, time_aim)}", end="")
        if ours_name in peaks and theirs_name in peaks:
            memory = peaks[ours_name] / peaks[theirs_name]
            print(f"; memory {memory:.3f}{verdict(memory, memory_aim)}", end="")
        print()
    profile(FUSED, args.size)
    profile(FUSED_BF16, args.size)


def verdict(value: float, aim: float | None) -> str:
    return "" if aim is None else f", {aim} aimed at: {'reached' if value <= aim else 'not reached'}"


if __name__ == "__main__":
    main()
