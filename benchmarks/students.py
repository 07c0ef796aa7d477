"""The accuracy of the paper's Table 2: train each of its students for the same passes over the same images, and evaluate it.

    python benchmarks/students.py IMAGES DATA [DATA ...] --teacher mobile_sam.pt --passes 1 --output runs/students

`DATA` has annotations.json in COCO's format and images/. Each student has the default recipe at its row's learning rate.
Teacher and students work at 512 rather than 1024, also in the evaluation, and crops are halved with it, so that it takes a
quarter of the time. mIoU is by ground-truth boxes, preset `sam`. A row that is done is not done again, so that the command
may be stopped.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import describe

from groupmix_sam.distill import Recipe, RunOptions, distill
from groupmix_sam.evaluate import LabelledDataset, Model, Result, evaluate, load_model, preset, summarize

SIZE = 512
DEFAULT = replace(Recipe(), phases=tuple(replace(phase, crop=phase.crop * SIZE // 1024) for phase in Recipe().phases))
# The paper's rows: encoder and learning rate.
ROWS = [
    ("sam_resnet18", 3e-4),
    ("sam_tiny_vit_5m", 3e-4),
    ("gmf_sam_33124", 3e-4),
    ("gmf_sam_33124", 3e-3),
    ("gmf_sam_33124", 1e-3),
    ("gmf_sam_3312", 3e-4),
    ("gmf_sam_3344", 3e-4),
    ("gmf_sam_2264", 3e-4),
    ("gmf_sam_2282", 3e-4),
    ("gmf_sam_2282", 1e-3),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--passes", type=float, default=1.0, help="over the images, for every student")
    parser.add_argument("--output", type=Path, default=Path("runs/students"))
    args = parser.parse_args()
    tasks = {
        d.name: LabelledDataset(d / "annotations.json", d / "images", replace(preset("sam"), prompts=("box",)))
        for d in args.data
    }

    def measure(model: Model, name: str) -> dict[str, Result]:
        return {data: evaluate(task, model, args.output / f"{name}-{data}.json") for data, task in tasks.items()}

    theirs = measure(load_model(args.teacher, image_size=SIZE), "teacher")
    rows = [("teacher", "", "", theirs)]
    for encoder, lr in ROWS:
        name = f"{encoder}-{lr:g}"
        record = train(args, encoder, lr, args.output / name)
        model = load_model(args.output / name / "weights", image_size=SIZE)
        rows.append((encoder, f"{lr:g}", f"{record['r2']:.3f}", measure(model, name)))
    print(describe())
    print(f"{args.passes:g} passes over {record['images']} images at {SIZE}; R2 on {record['held_out']} held out; mIoU by box")
    print(f"\n| encoder | lr | R2 | {' | '.join(tasks)} |\n|{'---|' * (3 + len(tasks))}")
    guess = [str(whole(result).box_baseline) for result in theirs.values()]
    print(f"| a filled box | | | {' | '.join(guess)} |")
    for *labels, results in rows:
        print(f"| {' | '.join([*labels, *(str(whole(result).iou) for result in results.values())])} |")


def train(args: argparse.Namespace, encoder: str, lr: float, folder: Path) -> dict[str, Any]:
    done = folder / "result.json"
    if not done.is_file():
        recipe = replace(DEFAULT, epochs=args.passes, lr=lr)
        cache = args.output / "cache"
        record = distill(
            args.images, args.teacher, folder, recipe, RunOptions(resume=True), encoder=encoder, cache=cache, image_size=SIZE
        )
        done.write_text(json.dumps({name: record[name] for name in ("r2", "images", "held_out")}))
    return json.loads(done.read_text())


def whole(result: Result) -> Any:
    """Return the line of a result for instances of every size."""
    return next(line for line in summarize(result) if line.size == "all")


if __name__ == "__main__":
    main()
