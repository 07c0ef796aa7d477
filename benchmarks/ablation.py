"""Measure what each part of the distillation recipe is worth: the same seed and the same seconds of training for every row.

    python benchmarks/ablation.py IMAGES --teacher mobile_sam.pt --minutes 3 --output runs/ablation

Each row is the default recipe with one part taken out, the paper's or NanoSAM's. Teacher and student work at 512 rather than
1024, and crops are halved with it, so that the same minutes train four times as far. R2 is measured on images held out,
whole. The two best are run with two seeds more. A row that is done is not done again, so that the command may be stopped. The
pixels that a row has seen, in whole images, stand beside, as the same seconds need not mean the same passes.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

from machine import describe

from groupmix_sam.distill import Phase, Recipe, RunOptions, distill
from groupmix_sam.distill.trainer import pixels_of
from groupmix_sam.reproduce.recipes import RECIPES

SIZE = 512
DEFAULT = replace(Recipe(), phases=tuple(replace(phase, crop=phase.crop * SIZE // 1024) for phase in Recipe().phases))
WHOLE = (Phase(1.0, 0, 1),)
ROWS = {
    "ours": DEFAULT,
    "without the ridge start": replace(DEFAULT, ridge_start=False),
    "without the ridge finish": replace(DEFAULT, ridge_finish=False),
    "without hints": replace(DEFAULT, hint_weight=0.0),
    "without the teacher's blocks": replace(DEFAULT, teacher_blocks=False),
    "without the average": replace(DEFAULT, ema_decay=0.0),
    "whole images only": replace(DEFAULT, phases=WHOLE),
    "small crops only": replace(DEFAULT, phases=(Phase(1.0, 128, 8),)),
    "with masks at the end": replace(DEFAULT, phases=(*DEFAULT.phases[:-1], Phase(DEFAULT.phases[-1].share, 0, 1, "masks"))),
    "paper": RECIPES["paper"],
    "paper, whole images from the cache": replace(RECIPES["paper"], augmentation="crop"),
    "nanosam": RECIPES["nanosam"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    args = parser.parse_args()
    results = {(name, 0): measure(args, name, 0) for name in ROWS}
    best = sorted(ROWS, key=lambda name: -results[name, 0]["r2"])[:2]
    for name in best:
        results |= {(name, seed): measure(args, name, seed) for seed in (1, 2)}
    print(describe())
    held_out = results["ours", 0]["held_out"]
    print(f"{args.minutes:g} minutes of training a row, the teacher's time beside; R2 on {held_out} images held out")
    print("\n| recipe | R2 by seed | mean | steps | whole images' pixels |\n|---|---|---|---|---|")
    for name in sorted(ROWS, key=lambda name: -results[name, 0]["r2"]):
        runs = [results[key] for key in results if key[0] == name]
        scores = [r["r2"] for r in runs]
        seeds = ", ".join(f"{s:.3f}" for s in scores)
        print(f"| {name} | {seeds} | {mean(scores):.3f} | {sum(runs[0]['steps'])} | {runs[0]['images']:.0f} |")


def measure(args: argparse.Namespace, name: str, seed: int) -> dict[str, object]:
    folder = args.output / f"{name.replace(' ', '_')}_{seed}"
    done = folder / "result.json"
    if not done.is_file():
        recipe = replace(ROWS[name], minutes=args.minutes, seed=seed)
        record = distill(
            args.images, args.teacher, folder, recipe, RunOptions(resume=True), cache=args.output / "cache", image_size=SIZE
        )
        images = sum(n * pixels_of(p, SIZE) for n, p in zip(record["steps"], recipe.phases, strict=True))
        done.write_text(json.dumps({**{k: record[k] for k in ("r2", "steps", "held_out")}, "images": images}))
    return json.loads(done.read_text())


if __name__ == "__main__":
    main()
