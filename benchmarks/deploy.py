"""Encoder and end-to-end time, peak memory and mask IoU of ours against the others, each at its native size, in one run.

    pip install 'groupmix-sam[openvino]' matplotlib
    python benchmarks/deploy.py IMAGES --work exported/ --rounds 0
    python benchmarks/deploy.py IMAGES --work exported/ --output benchmarks/results/runtimes_fast.json
    python benchmarks/report.py

IMAGES is a folder of photos; INT8 calibrates on them, and masks are compared on others of them. Exporting takes long: --work
keeps what is exported for the next run, and `--rounds 0` stops there. bf16 is left out by default where the processor has no
instructions for it, as its emulation takes seconds a frame. "End to end" is a frame of 640 x 480 or 1280 x 720 from
array to one box's mask in the frame's size. All models take the fused decoder and one resize, which favours the others;
the stock SamPredictor around MobileSAM's ViT-T, what people run today, is a row of its own. Models of a runtime and precision
take turns.

Weights but ours are random: they do not matter for time. RepViT-M1 is EdgeSAM's backbone, its branches merged, and L0 that of
EfficientViT-SAM, both with a linear neck, which is less than their own. Peak memory is that of a process of its own over one
frame, with the model. The mask quality beside a time is ours as measured (docs/results.md) and the others' as published: other
images and other protocols, so that it places them roughly and no more.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from machine import describe, has_bf16, header, interval, peak_kib
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from timm.utils import reparameterize_model

from groupmix_sam import build_sam_groupmix
from groupmix_sam.images import evenly_spaced, find_images
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.export.exporter import export
from groupmix_sam.inference.export.parity import Thresholds, measure_parity

FAST, DEFAULT = "gmf_sam_2282_512", "gmf_sam_2282"
# The fast weights on the frame alone, without padding: exported for a frame of 16:9, in PyTorch of any shape.
UNPADDED = f"{FAST} without padding"
OURS = (FAST, UNPADDED, DEFAULT)
MOBILE, NANO, EDGE, EFFICIENT = "sam_tiny_vit_5m", "sam_resnet18", "repvit_m1", "efficientvit_l0"
SIZES = {FAST: 512, UNPADDED: 512, DEFAULT: 1024, MOBILE: 1024, NANO: 1024, EDGE: 1024, EFFICIENT: 512}  # the native ones
# mIoU by ground-truth box on COCO val2017, as published, with its source. Ours and MobileSAM's are measured, on 99 images.
PUBLISHED = {
    NANO: "0.706, published (NanoSAM's README)",
    EDGE: "0.767, published (EdgeSAM, arXiv 2312.06660)",
    EFFICIENT: "0.78 to 0.80, published (EfficientViT-SAM, arXiv 2402.05008)",
}
STOCK = "stock sam_tiny_vit_5m"
WIDE = (1280, 720)
FRAMES = {"640 x 480": (480, 640), "1280 x 720": WIDE[::-1]}
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
PROTOCOL = (
    "Each model runs at its native size, ours at 512 (fast) and 1024. A frame goes from array to the mask of one box, "
    "in {rounds} rounds by turns. Times are medians, and intervals are 95 %, by bootstrap of the ratio. All rows use "
    "our decoder and mask resize, but 'stock', which is segment-anything's SamPredictor. 'Without padding' is the "
    "same encoder on the frame alone; exports of it are for 1280 x 720. Weights other than ours are random, which "
    "does not matter for time. RepViT-M1 and EfficientViT-L0 have linear necks. Mask quality is mIoU by ground-truth "
    "box on COCO val2017, in fp32. Ours and MobileSAM's is measured on the 99 images of mask quality. That of others is "
    "as published, on all images and by their own protocols."
)
LOOSE = Thresholds(0, 0, 0.5)  # for the time; the IoUs of ours are reported
TIMED = Thresholds(0, 0, -10)  # random weights are sure of nothing


def build(name: str) -> Sam:
    size = SIZES[name]
    if name == EDGE:
        sam = build_sam_groupmix(None, encoder="timm/repvit_m1", image_size=size)
        sam.image_encoder.backbone = reparameterize_model(sam.image_encoder.backbone)
    elif name == EFFICIENT:
        sam = build_sam_groupmix(None, encoder="timm/efficientvit_l1", image_size=size, embed_stride=8)
        # L1 is a deeper L0, which timm does not register.
        sam.image_encoder.backbone = timm.create_model("efficientvit_l1", features_only=True, depths=(1, 1, 1, 4, 4))
    elif name in OURS:
        sam = build_sam_groupmix("default" if name == DEFAULT else "fast")
    else:
        sam = build_sam_groupmix(None, encoder=name)
    return sam.eval()


def load(runtime: str, precision: str, name: str, threads: int, folder: Path) -> Predictor:
    if runtime != "torch":
        return Predictor.from_pretrained(folder / f"{name}-{runtime}-{precision}", threads=threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Predictor(build(name), dtype=dtype, pad=name != UNPADDED)


def export_all(args: argparse.Namespace, folder: Path, compared: list[np.ndarray], calibration: list[np.ndarray]) -> None:
    """Export what is not there yet; each encoder is traced once. The others' INT8 need not be good, and takes 8 images."""
    for name in args.encoders:
        missing = [(r, p) for r, p in args.settings if r != "torch" and not (folder / f"{name}-{r}-{p}").exists()]
        if not missing:
            continue
        sam = build(name)
        # The first of them, in ONNX and fp32, is the graphs of all others.
        graphs = folder / f"{name}-onnx-fp32"
        shaped = (lambda images: images) if name != UNPADDED else (lambda images: [crop(image) for image in images])
        for runtime, precision in missing:
            start = time.perf_counter()
            export(
                sam,
                folder / f"{name}-{runtime}-{precision}",
                shaped(compared) if name in OURS else compared[:1],
                runtime=runtime,
                precision=precision,
                thresholds=LOOSE if name in OURS else TIMED,
                frame_size=WIDE if name == UNPADDED else None,
                calibration=shaped(calibration if name in OURS else calibration[:8]) if precision == "int8" else (),
                graphs=graphs if graphs.exists() else None,
            )
            print(f"exported {name} for {runtime} in {precision}, {time.perf_counter() - start:.0f} s", flush=True)


def crop(image: np.ndarray) -> np.ndarray:
    """Return the middle of an image in the shape of a frame of 16:9."""
    height, width = image.shape[:2]
    rows, columns = min(height, width * WIDE[1] // WIDE[0]), min(width, height * WIDE[0] // WIDE[1])
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.ascontiguousarray(image[top : top + rows, left : left + columns])


def measure(predictor: Predictor | SamPredictor, image: np.ndarray) -> tuple[float, float]:
    """Return the seconds to the embedding, and to the mask."""
    start = time.perf_counter()
    predictor.set_image(image)
    embedded = time.perf_counter()
    height, width = image.shape[:2]
    box = np.array([0.15 * width, 0.15 * height, 0.65 * width, 0.8 * height])
    if isinstance(predictor, Predictor):
        predictor.predict_single_mask(boxes=box[None])
    else:
        predictor.predict(box=box, multimask_output=False)
    return embedded - start, time.perf_counter() - start


def peak_of(runtime: str, precision: str, name: str, args: argparse.Namespace, folder: Path) -> float:
    command = [sys.executable, __file__, str(args.images), "--threads", str(args.threads)]
    command += ["--work", str(folder), "--peak", runtime, precision, name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def quality(name: str) -> str:
    """Return the mask quality beside a model's time: mIoU by box on COCO."""
    if name == UNPADDED:
        return "docs/speed.md"
    if name in PUBLISHED:
        return PUBLISHED[name]
    rows = json.loads((Path(__file__).parent / "results" / "mask_quality.json").read_text(encoding="utf-8"))["models"]
    model = {DEFAULT: "default", FAST: "fast"}.get(name, "MobileSAM")
    (found,) = (row["coco"][0] for row in rows if (row["model"], row["prompt"]) == (model, "box"))
    return f"{found:.3f}, measured"


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(ours: list[float], theirs: list[float]) -> str:
    """Return the median of the rounds' ratios with its 95 % interval."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*interval(ratios(ours, theirs)))


def compare(
    setting: tuple[str, str], args: argparse.Namespace, folder: Path, rows: list[dict[str, Any]]
) -> dict[str, dict[str, list[float]]]:
    """Measure a runtime and precision, print its tables, return every model's end-to-end times by size of the frame."""
    runtime, precision = setting
    models = {name: load(runtime, precision, name, args.threads, folder) for name in args.encoders}
    if setting == ("torch", "fp32") and MOBILE in args.encoders:
        models[STOCK] = SamPredictor(build(MOBILE))
    results = {}
    for frame, (height, width) in FRAMES.items():
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        fitting = {name: model for name, model in models.items() if name != UNPADDED or runtime == "torch" or width == WIDE[0]}
        for predictor in fitting.values():  # for warming up
            measure(predictor, image)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in fitting}
        for _ in range(args.rounds):
            for name, predictor in fitting.items():
                times[name].append(measure(predictor, image))
        print(f"{runtime} {precision}, frames of {frame}")
        embedded, whole = ({name: [pair[i] for pair in pairs] for name, pairs in times.items()} for i in range(2))
        for name in fitting:
            row: dict[str, Any] = {"runtime": runtime, "precision": precision, "frame": frame, "encoder": name}
            row["quality"] = quality(name)
            row |= {"set_image_s": statistics.median(embedded[name]), "image_to_mask_s": statistics.median(whole[name])}
            rows.append(row)
            line = f"  {name:22} {SIZES.get(name, 1024):4} px, set_image {statistics.median(embedded[name]):.3f} s"
            line += f", end to end {statistics.median(whole[name]):.3f} s"
            if args.peaks and name not in (STOCK, UNPADDED) and frame == next(iter(FRAMES)):
                row["peak_mib"] = peak_of(runtime, precision, name, args, folder)
                line += f", peak {row['peak_mib']:.0f} MiB"
            if name != FAST:
                pairs = {"set_image": embedded, "image_to_mask": whole}
                row["ours_to_it"] = {part: interval(ratios(of[FAST], of[name])) for part, of in pairs.items()}
                line += f"; fast to it: {spread(embedded[FAST], embedded[name])}, end to end {spread(whole[FAST], whole[name])}"
            print(f"{line}; mIoU by box {row['quality']}", flush=True)
        results[f"{runtime} {precision}\n{frame}"] = whole
    return results


def parity(args: argparse.Namespace, folder: Path, compared: list[np.ndarray]) -> list[dict[str, Any]]:
    """Print and return the masks' IoU of our exports with those of PyTorch in fp32."""
    rows = []
    print(f"mask IoU of ours to fp32 PyTorch, {len(compared)} images")
    for name in (name for name in OURS if name in args.encoders):
        for runtime, precision in args.settings:
            if (runtime, precision) == ("torch", "fp32"):
                continue
            if runtime == "torch":
                low = load(runtime, precision, name, args.threads, folder)
                report = measure_parity(load("torch", "fp32", name, args.threads, folder), low, compared)
            else:
                report = json.loads((folder / f"{name}-{runtime}-{precision}" / "parity.json").read_text())
            figures = {part: report[part] for part in ("masks", "mean_iou", "min_iou")}
            rows.append({"encoder": name, "runtime": runtime, "precision": precision, **figures})
            print(f"  {rows[-1]}")
    return rows


def command(args: argparse.Namespace) -> str:
    """Return the command of a run, without its folders."""
    encoders = "" if args.encoders == list(SIZES) else f" --encoders {shlex.join(args.encoders)}"
    runtimes = "" if tuple(args.runtimes) == RUNTIMES else f" --runtimes {' '.join(args.runtimes)}"
    options = f"--precisions {' '.join(args.precisions)} --rounds {args.rounds}"
    return f"python benchmarks/deploy.py PHOTOS{encoders}{runtimes} {options}"


def plot(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(14, 4), layout="constrained")
    names = list(dict.fromkeys(name for times in results.values() for name in times))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        found = [(x, values[name]) for x, values in enumerate(results.values()) if name in values]
        places = [x + (i - (len(names) - 1) / 2) * width for x, _ in found]
        axes.bar(places, [statistics.median(t) for _, t in found], width, label=name)
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylabel("frame to mask, s")
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument(
        "--encoders", nargs="+", choices=list(SIZES), default=list(SIZES), metavar="ENCODER", help=", ".join(SIZES)
    )
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    bf16 = ["bf16"] if has_bf16() else []
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16", "int8"], default=["fp32", *bf16, "int8"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", type=int, default=32, help="images for INT8")
    parser.add_argument("--work", type=Path, help="folder that keeps the exported models; by default they are removed")
    parser.add_argument("--output", type=Path, help="a JSON file for benchmarks/results/runtimes_fast.json")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--peaks", action="store_true", help="measure peak memory too, a process for each row")
    parser.add_argument("--peak", nargs=3, metavar=("RUNTIME", "PRECISION", "ENCODER"), help="print one's peak memory and stop")
    args = parser.parse_args()
    args.settings = [(r, p) for r, p in SETTINGS if r in args.runtimes and p in args.precisions]
    if args.rounds and FAST not in args.encoders:
        parser.error(f"the others are compared with {FAST}: name it too.")
    torch.set_num_threads(args.threads)
    if args.peak:
        measure(load(*args.peak, args.threads, args.work), np.zeros((480, 640, 3), dtype=np.uint8))
        print(peak_kib() / 1024)
        return

    # As `groupmix-sam export --precision int8` does: every fifth is compared, the others calibrate.
    wanted = args.calibrate * 5 // 4
    images = [frame.decode() for frame in evenly_spaced(find_images(args.images), wanted)]
    compared, calibration = images[::5], [image for i, image in enumerate(images) if i % 5]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(exist_ok=True)
        export_all(args, folder, compared, calibration)
        if not args.rounds:
            return
        print(f"{describe()}; {args.rounds} rounds")
        results: dict[str, dict[str, list[float]]] = {}
        rows: list[dict[str, Any]] = []
        content = header(command(args)) | {"ours": FAST, "protocol": PROTOCOL.format(rounds=args.rounds)}
        content |= {"rows": rows, "parity": parity(args, folder, compared)}
        for setting in args.settings:
            results |= compare(setting, args, folder, rows)
            if args.output:  # each time, so that a run that is stopped is not lost
                args.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
