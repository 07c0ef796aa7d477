"""Encoder and end-to-end time, peak memory and mask IoU of ours against the others in each runtime, side by side in one run.

    pip install 'groupmix-sam[openvino]'
    python benchmarks/deploy.py PICTURES --size 1024
    python benchmarks/deploy.py PICTURES --size 512 --plot times.png

PICTURES is a folder of photos; INT8 calibrates on them, and masks are compared on others of them. "End to end" is a picture of
480 x 640 from array to one box's mask in the picture's size. All models take the fast decoder and one resize, which is
favourable to the others; the stock SamPredictor around MobileSAM's ViT-T, what people run today, is a row of its own. Models of
a runtime and precision take turns. Weights but ours are random: they do not matter for time. `repvit_m1` is EdgeSAM's backbone
without its neck, so less than EdgeSAM's encoder; EfficientViT-SAM's L0 is not in timm. Peak memory is that of a process of
its own over one picture, with the model.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from machine import describe, interval
from segment_anything import SamPredictor

import groupmix_sam
from groupmix_sam import build_sam_groupmix
from groupmix_sam.deploy import Predictor
from groupmix_sam.deploy.export import export
from groupmix_sam.deploy.parity import Thresholds, measure_parity
from groupmix_sam.pictures import find_pictures

OURS = "gmf_sam_2282"
ENCODERS = (OURS, "sam_tiny_vit_5m", "sam_resnet18")
STOCK, EDGE = "stock sam_tiny_vit_5m", "repvit_m1"
SETTINGS = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
BOX = np.array([100.0, 80, 420, 380])


def build(name: str, size: int) -> groupmix_sam.sam.Sam:
    return build_sam_groupmix("default" if name == OURS else None, encoder=name, image_size=size)


def load(runtime: str, precision: str, name: str, size: int, threads: int, folder: Path) -> Predictor:
    if runtime != "torch":
        return Predictor(folder / f"{name}-{runtime}-{precision}", threads=threads)
    return Predictor(build(name, size), dtype=torch.bfloat16 if precision == "bf16" else torch.float32)


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def end_to_end(predictor, picture: np.ndarray) -> None:
    predictor.set_image(picture)
    predictor.predict(box=BOX, multimask_output=False)


def calls(predictor, picture: np.ndarray) -> tuple:
    """Return the encoder alone, and the whole path."""
    return lambda: predictor.set_image(picture), lambda: end_to_end(predictor, picture)


def peak_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def spread(ratios: list[float]) -> str:
    """Return the median with its 95 % interval."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*interval(ratios))


def compare(setting: tuple[str, str], args: argparse.Namespace, folder: Path, picture: np.ndarray) -> dict[str, list[float]]:
    """Measure a runtime and precision, print its table, return every model's end-to-end times."""
    runtime, precision = setting
    models = {name: load(runtime, precision, name, args.size, args.threads, folder) for name in ENCODERS}
    rows = {name: calls(predictor, picture) for name, predictor in models.items()}
    if setting == ("torch", "fp32"):
        rows[STOCK] = calls(SamPredictor(build("sam_tiny_vit_5m", args.size)), picture)
    if runtime == "torch":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        edge = timm.create_model(EDGE, num_classes=0).eval().to(dtype)
        x = torch.randn(1, 3, args.size, args.size, dtype=dtype)
        rows[EDGE] = (torch.inference_mode()(lambda: edge.forward_features(x)), None)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in rows}
    for round_ in range(args.rounds + 1):
        for name, parts in rows.items():
            for values, call in zip(times[name], parts, strict=True):
                if call is not None:
                    taken = seconds(call)
                    if round_:  # the first is for warming up
                        values.append(taken)
    print(f"{runtime} {precision}")
    for name, (encoder, whole) in times.items():
        line = f"  {name:22} set_image {statistics.median(encoder):.3f} s"
        if whole:
            line += f", end to end {statistics.median(whole):.3f} s"
        if name in ENCODERS:
            command = [sys.executable, __file__, str(args.pictures), "--size", str(args.size), "--threads", str(args.threads)]
            command += ["--work", str(folder), "--peak", runtime, precision, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            line += f", peak {float(done.stdout.split()[-1]):.0f} MiB"
        if name != OURS:
            line += f"; ours to it: {spread([a / b for a, b in zip(times[OURS][0], encoder, strict=True)])}"
            if whole:
                line += f", end to end {spread([a / b for a, b in zip(times[OURS][1], whole, strict=True)])}"
        print(line, flush=True)
    return {name: whole for name, (_, whole) in times.items() if whole}


def plot(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for i, name in enumerate((*ENCODERS, STOCK)):
        found = [(x, values[name]) for x, values in enumerate(results.values()) if name in values]
        axes.bar([x + 0.2 * i - 0.3 for x, _ in found], [statistics.median(t) for _, t in found], 0.2, label=name)
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylabel("picture to mask, s")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", type=int, default=64, help="pictures for INT8")
    parser.add_argument("--work", type=Path, help="folder that keeps the exported models; by default they are removed")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--peak", nargs=3, metavar=("RUNTIME", "PRECISION", "ENCODER"), help="print one's peak memory and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures = find_pictures(args.pictures)
    picture = np.ascontiguousarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    if args.peak:
        end_to_end(load(*args.peak, args.size, args.threads, args.work), picture)
        print(peak_mib())
        return

    print(f"{describe()}; {args.size} x {args.size}, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        judged = [p.decode() for p in pictures[:: max(1, len(pictures) // 8)][:8]]
        calibration = [path for path in pictures if path not in pictures[:: max(1, len(pictures) // 8)]][: args.calibrate]
        for name in ENCODERS:
            for runtime, precision in SETTINGS:
                target = folder / f"{name}-{runtime}-{precision}"
                if runtime != "torch" and not target.exists():
                    images = [p.decode() for p in calibration] if precision == "int8" else []
                    loose = Thresholds(0, 0, -10)  # for the time; ours are reported below
                    export(
                        build(name, args.size),
                        target,
                        judged[:1],
                        runtime=runtime,
                        precision=precision,
                        thresholds=loose,
                        calibration=images,
                    )
        results = {f"{r} {p}": compare((r, p), args, folder, picture) for r, p in SETTINGS}
        exact = Predictor(build(OURS, args.size))
        print(f"mask IoU of ours to fp32 PyTorch, {len(judged)} pictures")
        for runtime, precision in SETTINGS[1:]:
            report = measure_parity(exact, load(runtime, precision, OURS, args.size, args.threads, folder), judged)
            print(f"  {runtime} {precision}: {report['mean']:.4f} in the mean, {report['least']:.4f} at least, ", end="")
            print(f"of {report['masks']} masks")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
