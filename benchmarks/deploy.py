"""Encoder and end-to-end time, peak memory and mask IoU of ours against the others in each runtime, side by side in one run.

    pip install 'groupmix-sam[openvino]' matplotlib
    python benchmarks/deploy.py IMAGES --size 1024 --work exported_1024/ --plot times_1024.png
    python benchmarks/deploy.py IMAGES --size 512 --work exported_512/ --plot times_512.png

IMAGES is a folder of photos; INT8 calibrates on them, and masks are compared on others of them. Exporting takes long: --work
keeps what is exported for the next run, and `--rounds 0` stops there. "End to end" is an image of 480 x 640 from array to one
box's mask in the image's size. All models take the fast decoder and one resize, which is favourable to the others; the stock
SamPredictor around MobileSAM's ViT-T, what people run today, is a row of its own. Models of a runtime and precision take turns.

Weights but ours are random: they do not matter for time. RepViT-M1 is EdgeSAM's backbone, its branches merged, and L0 that of
EfficientViT-SAM, both with a linear neck, which is less than their own. EfficientViT-SAM-L0 is made for 512. Peak memory is
that of a process of its own over one image, with the model.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from machine import describe, interval, peak_kib
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from timm.utils import reparameterize_model

from groupmix_sam import build_sam_groupmix
from groupmix_sam.images import evenly_spaced, find_images
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.export.exporter import export
from groupmix_sam.inference.export.parity import Thresholds, measure_parity

OURS, MOBILE, NANO, EDGE, EFFICIENT = "gmf_sam_2282", "sam_tiny_vit_5m", "sam_resnet18", "repvit_m1", "efficientvit_l0"
ENCODERS = (OURS, MOBILE, NANO, EDGE, EFFICIENT)
STOCK = "stock sam_tiny_vit_5m"
SETTINGS = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("onnx", "fp32"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
RUNTIMES = tuple(dict.fromkeys(runtime for runtime, _ in SETTINGS))
BOX = np.array([100.0, 80, 420, 380])
LOOSE = Thresholds(0, 0, 0.5)  # for the time; the IoUs of ours are reported
TIMED = Thresholds(0, 0, -10)  # random weights are sure of nothing


def build(name: str, size: int) -> Sam:
    if name == EDGE:
        sam = build_sam_groupmix(None, encoder="timm/repvit_m1", image_size=size)
        sam.image_encoder.backbone = reparameterize_model(sam.image_encoder.backbone)
    elif name == EFFICIENT:
        sam = build_sam_groupmix(None, encoder="timm/efficientvit_l1", image_size=size)
        # L1 is a deeper L0, which timm does not register.
        sam.image_encoder.backbone = timm.create_model("efficientvit_l1", features_only=True, depths=(1, 1, 1, 4, 4))
    else:
        sam = build_sam_groupmix("default" if name == OURS else None, encoder=name, image_size=size)
    return sam.eval()


def load(runtime: str, precision: str, name: str, size: int, threads: int, folder: Path) -> Predictor:
    if runtime != "torch":
        return Predictor.from_pretrained(folder / f"{name}-{runtime}-{precision}", threads=threads)
    return Predictor(build(name, size), dtype=torch.bfloat16 if precision == "bf16" else torch.float32)


def export_all(args: argparse.Namespace, folder: Path, judged: list[np.ndarray], calibration: list[np.ndarray]) -> None:
    """Export what is not there yet; each encoder is traced once. The others' INT8 need not be good, and takes 8 images."""
    for name in args.encoders:
        missing = [(r, p) for r, p in args.settings if r != "torch" and not (folder / f"{name}-{r}-{p}").exists()]
        if not missing:
            continue
        sam = build(name, args.size)
        # The first of them, in ONNX and fp32, is the graphs of all others.
        graphs = folder / f"{name}-onnx-fp32"
        for runtime, precision in missing:
            start = time.perf_counter()
            export(
                sam,
                folder / f"{name}-{runtime}-{precision}",
                judged if name == OURS else judged[:1],
                runtime=runtime,
                precision=precision,
                thresholds=LOOSE if name == OURS else TIMED,
                calibration=(calibration if name == OURS else calibration[:8]) if precision == "int8" else (),
                graphs=graphs if graphs.exists() else None,
            )
            print(f"exported {name} for {runtime} in {precision}, {time.perf_counter() - start:.0f} s", flush=True)


def measure(predictor: Predictor | SamPredictor, image: np.ndarray) -> tuple[float, float]:
    """Return the seconds to the embedding, and to the mask."""
    start = time.perf_counter()
    predictor.set_image(image)
    embedded = time.perf_counter()
    predictor.predict(box=BOX, multimask_output=False)
    return embedded - start, time.perf_counter() - start


def peak_of(runtime: str, precision: str, name: str, args: argparse.Namespace, folder: Path) -> float:
    command = [sys.executable, __file__, str(args.images), "--size", str(args.size), "--threads", str(args.threads)]
    command += ["--work", str(folder), "--peak", runtime, precision, name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def spread(ours: list[float], theirs: list[float]) -> str:
    """Return the median of the rounds' ratios with its 95 % interval."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*interval([a / b for a, b in zip(ours, theirs, strict=True)]))


def compare(setting: tuple[str, str], args: argparse.Namespace, folder: Path, image: np.ndarray) -> dict[str, list[float]]:
    """Measure a runtime and precision, print its table, return every model's end-to-end times."""
    runtime, precision = setting
    models = {name: load(runtime, precision, name, args.size, args.threads, folder) for name in args.encoders}
    if setting == ("torch", "fp32") and MOBILE in args.encoders:
        models[STOCK] = SamPredictor(build(MOBILE, args.size))
    for predictor in models.values():  # for warming up
        measure(predictor, image)
    times = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, predictor in models.items():
            times[name].append(measure(predictor, image))
    print(f"{runtime} {precision}")
    embedded, whole = ({name: [pair[i] for pair in pairs] for name, pairs in times.items()} for i in range(2))
    for name in models:
        line = f"  {name:22} set_image {statistics.median(embedded[name]):.3f} s"
        line += f", end to end {statistics.median(whole[name]):.3f} s"
        if name != STOCK:
            line += f", peak {peak_of(runtime, precision, name, args, folder):.0f} MiB"
        if name != OURS:
            line += f"; ours to it: {spread(embedded[OURS], embedded[name])}, end to end {spread(whole[OURS], whole[name])}"
        print(line, flush=True)
    return whole


def plot(results: dict[str, dict[str, list[float]]], size: int, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    names = list(dict.fromkeys(name for times in results.values() for name in times))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        found = [(x, values[name]) for x, values in enumerate(results.values()) if name in values]
        places = [x + (i - (len(names) - 1) / 2) * width for x, _ in found]
        axes.bar(places, [statistics.median(t) for _, t in found], width, label=name)
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylabel(f"image to mask at {size}, s")
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", type=int, default=32, help="images for INT8")
    parser.add_argument("--work", type=Path, help="folder that keeps the exported models; by default they are removed")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--peak", nargs=3, metavar=("RUNTIME", "PRECISION", "ENCODER"), help="print one's peak memory and stop")
    args = parser.parse_args()
    args.settings = [(runtime, precision) for runtime, precision in SETTINGS if runtime in args.runtimes]
    if args.rounds and OURS not in args.encoders:
        parser.error(f"the others are compared with {OURS}: name it too.")
    torch.set_num_threads(args.threads)
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    if args.peak:
        measure(load(*args.peak, args.size, args.threads, args.work), frame)
        print(peak_kib() / 1024)
        return

    # As `groupmix-sam export --precision int8` does: every fifth is compared, the others calibrate.
    wanted = args.calibrate * 5 // 4
    images = [frame.decode() for frame in evenly_spaced(find_images(args.images), wanted)]
    judged, calibration = images[::5], [image for i, image in enumerate(images) if i % 5]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(exist_ok=True)
        export_all(args, folder, judged, calibration)
        if not args.rounds:
            return
        print(f"{describe()}; {args.size} x {args.size}, {args.rounds} rounds")
        results = {f"{r} {p}": compare((r, p), args, folder, frame) for r, p in args.settings}
        print(f"mask IoU of ours to fp32 PyTorch, {len(judged)} images")
        for runtime, precision in args.settings:
            if (runtime, precision) == ("torch", "fp32"):
                continue
            if runtime == "torch":
                low = load(runtime, precision, OURS, args.size, args.threads, folder)
                report = measure_parity(Predictor(build(OURS, args.size)), low, judged)
            else:
                report = json.loads((folder / f"{OURS}-{runtime}-{precision}" / "parity.json").read_text())
            print(f"  {runtime} {precision}: {report['mean']:.4f} in the mean, {report['least']:.4f} at least, ", end="")
            print(f"of {report['masks']} masks")
    if args.plot:
        plot(results, args.size, args.plot)


if __name__ == "__main__":
    main()
