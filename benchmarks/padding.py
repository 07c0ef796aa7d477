"""What it gains and costs to leave out the padding: time of encoder and decoder, and mask IoU with labels.

    pip install 'groupmix-sam[eval]'
    python benchmarks/padding.py ANNOTATIONS [ANNOTATIONS ...] --images 33

Each argument is a COCO file, with its images beside it or in images/. The same weights run with and without padding, in turn.
--images takes that many of each file's images, drawn by a seed: 33 of two files take two cores some five minutes.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, header, interval

from groupmix_sam import build_sam_groupmix
from groupmix_sam.evaluate import LabelledDataset, Model, compare, evaluate, preset
from groupmix_sam.inference import Predictor

FRAMES = ((640, 480), (1280, 720))


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print the ratios of time and the paired differences of IoU, as the rows of benchmarks/results/padding.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", nargs="*", type=Path)
    parser.add_argument("--checkpoints", nargs="+", default=["fast", "default"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, help="images of each file, drawn by a seed; by default all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("padding"), help="folder of the evaluations, which are resumed")
    parser.add_argument("--output", type=Path, help="a JSON file for benchmarks/results/padding.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe(), file=sys.stderr)
    drawn = "All images" if args.images is None else f"{args.images} images drawn by a seed"
    result: dict[str, Any] = header(
        f"python benchmarks/padding.py ANNOTATIONS --checkpoints {' '.join(args.checkpoints)} --rounds {args.rounds}"
        + (f" --images {args.images}" if args.images else "")
    )
    result["protocol"] = (
        f"PyTorch in fp32, the same weights with and without padding by turns, {args.rounds} rounds. A time is that without "
        "padding over that with it, a median with its 95 % interval by bootstrap. "
        f"{drawn} of each set, nearly all of 4:3 or 3:2. mIoU is by the protocol of mask quality, differences are paired."
    )
    result |= {"times": [], "masks": []}
    for checkpoint in args.checkpoints:
        sam = build_sam_groupmix(checkpoint)
        padded, image = Predictor(sam), Predictor(sam, pad=False)
        for width, height in FRAMES:
            for part, ratio in time_ratios(padded, image, width, height, args.rounds).items():
                result["times"].append({"model": checkpoint, "frame": f"{width} x {height}", "part": part, "ratio": ratio})
        for path in args.annotations:
            work = args.work / f"{checkpoint}_{path.parent.name}_{args.images or 'all'}"
            for row in compare_masks(padded, image, path, work, args.images):
                result["masks"].append({"model": checkpoint, "data": path.parent.name, **row})
        if args.output:
            args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def time_ratios(padded: Predictor, image: Predictor, width: int, height: int, rounds: int) -> dict[str, list[float]]:
    """Return the time without padding over that with it, of the encoder and of one mask, with intervals."""
    frame = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    box = np.array([width / 4, height / 4, width / 2, height / 2])
    ratios: dict[str, list[float]] = {"encoder": [], "mask": []}
    for _ in range(rounds + 1):
        encoder = [seconds(partial(model.set_image, frame)) for model in (padded, image)]
        for model in (padded, image):
            model.predict(box=box)  # computes what all prompts share
        mask = [seconds(partial(model.predict, box=box, multimask_output=False)) for model in (padded, image)]
        ratios["encoder"].append(encoder[1] / encoder[0])
        ratios["mask"].append(mask[1] / mask[0])
    return {part: list(interval(values[1:])) for part, values in ratios.items()}


def compare_masks(
    padded: Predictor, image: Predictor, annotations: Path, output: Path, count: int | None
) -> list[dict[str, Any]]:
    """Return the mean IoU with labels of both, and the paired difference, for each kind of prompt."""
    images = annotations.parent / "images"
    dataset = LabelledDataset(annotations, images if images.is_dir() else annotations.parent, preset("sam"))
    if count is not None:
        chosen = random.Random(0).sample(sorted(dataset.ids), min(count, len(dataset.ids)))
        dataset.ids = {name: dataset.ids[name] for name in chosen}
    results = []
    for name, model in (("padded", padded), ("image", image)):
        described = Model(model, name, f"{model.model_hash} {name}", model.image_size)
        result = evaluate(dataset, described, output.with_name(f"{output.name}_{name}.json"))
        assert result is not None
        results.append(result)
    return [
        {"prompt": row.prompt, "masks": row.count}
        | {key: [value.value, value.low, value.high] for key, value in (("padded", row.a), ("image", row.b))}
        | {"difference": [row.difference.value, row.difference.low, row.difference.high]}
        for row in compare(*results)
    ]


if __name__ == "__main__":
    main()
