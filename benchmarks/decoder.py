"""Time from an image's features to its masks, of this version against an earlier one and against segment-anything's.

    pip install 'groupmix-sam[openvino]'
    git worktree add ../before REVISION
    python benchmarks/decoder.py --before ../before --output benchmarks/results/decoder.json

Each round gives new features to every model in turn, so what is computed once an image counts, and asks for the masks of 1 or
32 boxes in a frame of 1280 x 720, as bools. `Predictor.predict_single_mask` runs here and in a process of the earlier version,
with the fast weights at 64 x 64 tokens. "stock" is segment-anything's SamPredictor in PyTorch, a prompt at a time. --work keeps
what is exported, a minute each, and `--rounds 0` stops there. Processes have equally many threads and never run at once.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from machine import describe, header, interval
from segment_anything import SamPredictor

from groupmix_sam import build_sam_groupmix
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.export.exporter import export
from groupmix_sam.inference.export.parity import Thresholds

WIDTH, HEIGHT = 1280, 720
PROMPTS = (1, 32)
RUNTIMES = ("torch", "onnx", "openvino")
BEFORE, PADDED, UNPADDED = "before", "now", "now, without padding"


def boxes(count: int) -> np.ndarray:
    """Return boxes of a fifth to a half of the frame's sides."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.2, 0.5, (count, 2))
    starts = rng.uniform(0, 1 - sides)
    return np.hstack([starts, starts + sides]) * (WIDTH, HEIGHT, WIDTH, HEIGHT)


def load(runtime: str, model: str, folder: Path, threads: int) -> Predictor:
    """Return a predictor of the fast weights, exported to the folder if it is not there yet."""
    sam = build_sam_groupmix("fast")
    if runtime == "torch":
        return Predictor(sam, pad=model != UNPADDED)
    path = folder / f"{model}-{runtime}"
    if not path.exists():
        image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        graphs = folder / f"{model}-onnx"
        export(
            sam,
            path,
            [image],
            runtime=runtime,
            frame_size=(WIDTH, HEIGHT) if model == UNPADDED else None,
            thresholds=Thresholds(0, 0, -10),
            graphs=graphs if graphs.exists() else None,
        )
    return Predictor.from_pretrained(path, threads=threads)


def timer(runtime: str, model: str, folder: Path, threads: int) -> Callable[[int, int], float]:
    """Return what measures the seconds for a number of prompts on the features of a seed."""
    torch.set_num_threads(threads)
    predictor = load(runtime, model, folder, threads)
    frame = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    predictor.set_image(frame)
    features = predictor.get_image_embedding()

    def run(seed: int, count: int) -> float:
        changed = features + np.float32(0.001 * seed)
        start = time.perf_counter()
        predictor.set_embedding(changed, (HEIGHT, WIDTH))
        predictor.predict_single_mask(boxes=boxes(count))
        return time.perf_counter() - start

    return run


def stock_timer() -> Callable[[int, int], float]:
    """Return the same for segment-anything's SamPredictor."""
    predictor = SamPredictor(build_sam_groupmix("fast"))
    predictor.set_image(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    features = predictor.features

    def run(seed: int, count: int) -> float:
        predictor.features = features + 0.001 * seed
        start = time.perf_counter()
        for box in boxes(count):
            predictor.predict(box=box, multimask_output=False)
        return time.perf_counter() - start

    return run


def earlier_timer(checkout: Path, runtime: str, folder: Path, threads: int) -> Callable[[int, int], float]:
    """Return the same for an earlier version, in a process of its own."""
    command = [sys.executable, __file__, "--serve", runtime, "--work", str(folder), "--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    asked: IO[str] | None = process.stdin
    answers: IO[str] | None = process.stdout
    assert asked is not None
    assert answers is not None
    if not Path(answers.readline().strip()).is_relative_to(checkout.resolve()):
        raise SystemExit(f"the process of {checkout} imports another groupmix_sam: give the root of a checkout.")

    def run(seed: int, count: int) -> float:
        asked.write(f"{seed} {count}\n")
        asked.flush()
        return float(answers.readline())

    return run


def serve(runtime: str, folder: Path, threads: int) -> None:
    """Answer what `earlier_timer` asks."""
    import groupmix_sam

    run = timer(runtime, BEFORE, folder, threads)
    print(groupmix_sam.__file__, flush=True)
    for line in sys.stdin:
        print(run(*map(int, line.split())), flush=True)


def main() -> None:
    """Print the ratios of time, with intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("decoder"), help="folder that keeps the exported models")
    parser.add_argument("--output", type=Path, help="a JSON file for benchmarks/results/decoder.json")
    parser.add_argument("--serve", choices=RUNTIMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    if args.serve:
        serve(args.serve, args.work, args.threads)
        return
    torch.set_num_threads(args.threads)
    print(describe(), file=sys.stderr)
    result: dict[str, Any] = header(f"python benchmarks/decoder.py --before ../before --rounds {args.rounds}")
    result["protocol"] = (
        f"From the features of the fast weights to bool masks of a frame of {WIDTH} x {HEIGHT}, one for each box. Every round "
        f"gives each model new features, in {args.rounds} rounds by turns. Times are medians, and a ratio is the median of the "
        "rounds' with its 95 % interval, by bootstrap. \"Stock\" is segment-anything's SamPredictor in PyTorch."
    )
    result["rows"] = []
    for runtime in args.runtimes:
        models = {name: timer(runtime, name, args.work, args.threads) for name in (PADDED, UNPADDED)}
        if args.before:
            models[BEFORE] = earlier_timer(args.before, runtime, args.work, args.threads)
        if runtime == "torch":
            models["stock"] = stock_timer()
        for count in PROMPTS if args.rounds else ():
            times: dict[str, list[float]] = {name: [] for name in models}
            for seed in range(args.rounds + 1):
                for name, run in models.items():
                    times[name].append(run(seed, count))
            for name in models:
                row: dict[str, Any] = {"runtime": runtime, "prompts": count, "model": name}
                row["seconds"] = float(np.median(times[name][1:]))  # the first is for warming up
                for other in (BEFORE, "stock"):
                    if other in models and name not in (BEFORE, "stock"):
                        row[f"to_{other}"] = interval([a / b for a, b in zip(times[name][1:], times[other][1:], strict=True)])
                result["rows"].append(row)
                print(row, flush=True)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
