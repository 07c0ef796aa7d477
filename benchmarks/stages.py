r"""Measure what the stages of distillation are worth: from the same weights, the same minutes of training for each row.

    python benchmarks/stages.py IMAGES --teacher mobile_sam.pt --init-checkpoint WEIGHTS --minutes 12 \
        --annotations coco/annotations.json --annotations tools/annotations.json --output runs/stages

The rows are: features only; half of the time on features, then the decoder; a third each on features, on the decoder, and on
both together. Masks are measured on labelled images, by box and by point as `groupmix-sam evaluate` does, and paired with those
of the weights that all began with. A row that is done is not done again, so that the command may be stopped.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from machine import describe

from groupmix_sam.distill import JOINT_RATE, PRESETS, DecoderRecipe, Recipe, RunOptions, distill
from groupmix_sam.evaluate import LabelledDataset, Result, compare, evaluate, load_model, preset

CONTINUE = PRESETS["continue"]


def stages(minutes: float) -> dict[str, list[Recipe]]:
    """Return the recipes of each row, one after the other."""
    joint = DecoderRecipe(minutes=minutes / 3, encoder_rate=JOINT_RATE)
    return {
        "features": [replace(CONTINUE, minutes=minutes)],
        "features, decoder": [replace(CONTINUE, minutes=minutes / 2, decoder=DecoderRecipe(minutes=minutes / 2))],
        "features, decoder, both": [
            replace(CONTINUE, minutes=minutes / 3, decoder=DecoderRecipe(minutes=minutes / 3)),
            replace(CONTINUE, minutes=0, decoder=joint),
        ],
    }


def main() -> None:
    """Train, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--init-checkpoint", required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--annotations", type=Path, action="append", default=[], help="a COCO file, with its images in images/")
    parser.add_argument("--limit", type=int, help="measure on the first images of each")
    parser.add_argument("--output", type=Path, default=Path("runs/stages"))
    args = parser.parse_args()
    start = measure(args, "start", args.init_checkpoint)
    print(f"{describe()}; {args.minutes:g} minutes a row", flush=True)
    print("\n| stages | R2 | data | prompt | masks | mIoU | gain |\n|---|---|---|---|---|---|---|")
    for name, recipes in stages(args.minutes).items():
        weights, r2 = train(args, name, recipes)
        for annotations, before, after in zip(args.annotations, start, measure(args, name, weights), strict=True):
            for row in compare(before, after):
                cells = (name, f"{r2:.3f}", annotations.parent.name, row.prompt, row.count, row.b, row.difference)
                print("|", " | ".join(map(str, cells)), "|", flush=True)


def train(args: argparse.Namespace, name: str, recipes: list[Recipe]) -> tuple[str, float]:
    """Return the weights that a row's stages end with, and R2 of their features on held-out images."""
    checkpoint, r2 = args.init_checkpoint, 0.0
    for number, recipe in enumerate(recipes):
        folder = args.output / name.replace(", ", "_") / str(number)
        options = RunOptions(resume=True)
        cache = args.output / "cache"
        record = distill(args.images, args.teacher, folder, recipe, options, init_checkpoint=checkpoint, cache=cache)
        checkpoint, r2 = str(folder / "weights"), record["r2"]
    return checkpoint, r2


def measure(args: argparse.Namespace, name: str, checkpoint: str) -> list[Result]:
    """Return the evaluation of weights on each labelled set."""
    results = []
    for number, annotations in enumerate(args.annotations):
        data = LabelledDataset(annotations, annotations.parent / "images", preset("sam"), args.limit)
        output = args.output / f"{name.replace(', ', '_')}_{number}.json"
        result = evaluate(data, load_model(checkpoint), output)
        assert result is not None
        results.append(result)
    return results


if __name__ == "__main__":
    main()
