"""What it gains and costs to leave out the padding: time of encoder and decoder, and mask IoU with labels.

    python benchmarks/padding.py ANNOTATIONS [ANNOTATIONS ...] --output results/

Each argument is a COCO file, with its images beside it or in images/. The same weights run with and without padding, in turn.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, interval

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
    parser.add_argument("--output", type=Path, default=Path("padding"))
    args = parser.parse_args()
    print(describe(), file=sys.stderr)
    result: dict[str, list[dict[str, Any]]] = {"times": [], "masks": []}
    for checkpoint in args.checkpoints:
        sam = build_sam_groupmix(checkpoint)
        padded, image = Predictor(sam), Predictor(sam, pad=False)
        for width, height in FRAMES:
            for part, ratio in time_ratios(padded, image, width, height, args.rounds).items():
                result["times"].append({"model": checkpoint, "frame": f"{width} x {height}", "part": part, "ratio": ratio})
        for path in args.annotations:
            for row in compare_masks(padded, image, path, args.output / f"{checkpoint}_{path.parent.name}"):
                result["masks"].append({"model": checkpoint, "data": path.parent.name, **row})
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


def compare_masks(padded: Predictor, image: Predictor, annotations: Path, output: Path) -> list[dict[str, Any]]:
    """Return the mean IoU with labels of both, and the paired difference, for each kind of prompt."""
    images = annotations.parent / "images"
    dataset = LabelledDataset(annotations, images if images.is_dir() else annotations.parent, preset("sam"))
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
