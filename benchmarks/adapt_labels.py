"""What `adapt --labels` gains by the number of labelled images: cross-validation on a labelled folder.

    python benchmarks/adapt_labels.py my_parts/ --coco coco/ --mobile-sam mobile_sam.pt

A folder has `images/` and `annotations.json`, in COCO format. Its images, in the order of their names, are cut into 20 blocks
of neighbours, and each of five folds has every fifth block. Names order images by camera and time. So a fold shows what the
other images show, as later frames of one's own line do, but except at the ends of blocks its images have no neighbour among
them, which may be a near-duplicate. Five folds of one block each would ask for something else: other cameras and scenes.

For each fold `adapt` is run with 5, 10, 20 and 40 images, evenly drawn from the others, and the fold is measured: by the true
box, and by the innermost point with the best of three masks by predicted IoU. Figures are means over all instances of all
folds; intervals are 95 %, by bootstrap over images. With --coco what is kept of other objects is measured too, on some of its
images, with the weights of --coco-count images.

It takes folds x counts x checkpoints x minutes: 7 hours with the defaults, and minutes for the figures themselves. What is done
is kept in --work, so it can be stopped at any time and started again with the same arguments. --folds, --counts, --checkpoints
and --minutes can be fewer. Features are computed once an image.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import header

from groupmix_sam import build_sam_groupmix
from groupmix_sam.annotations import read_annotations
from groupmix_sam.distill import ADAPT, DecoderRecipe, Grid, adapt, find_images
from groupmix_sam.distill.labels import Labelled, choose_labelled, encode_frames
from groupmix_sam.distill.run import RunOptions
from groupmix_sam.evaluate.metrics import boundary_iou, innermost_pixel
from groupmix_sam.images import evenly_spaced
from groupmix_sam.inference import Predictor
from groupmix_sam.masks import box_baseline, mask_iou

FOLDS = 5
BLOCKS = 20  # that the folds take by turns
KINDS = ("box", "point")
Rows = dict[str, list[list[float]]]  # by what is measured: a list of its instances' values for each image


def load_frames(folder: Path, checkpoint: str, cache: Path, count: int | None = None) -> list[Labelled]:
    """Return a folder's images, or some, with their labels and a model's features, in the order of their names."""
    images = sorted(find_images(folder / "images"), key=str)
    images = images if count is None else evenly_spaced(images, count)
    encoder = build_sam_groupmix(checkpoint).image_encoder
    matched = read_annotations(folder / "annotations.json", images)
    labelled, left_out = choose_labelled(matched, Grid.of(encoder))
    for line in left_out:
        print(line)
    labelled.sort(key=lambda entry: str(entry.frame.image))
    frames = encode_frames(encoder, [entry.frame for entry in labelled], cache)
    return [entry._replace(frame=frame) for entry, frame in zip(labelled, frames, strict=True)]


def in_folds(entries: Sequence[Labelled]) -> list[list[Labelled]]:
    """Return entries, in the order of their names, as folds of blocks of neighbours."""
    blocks = np.array_split(np.arange(len(entries)), BLOCKS)
    return [[entries[i] for block in blocks[fold::FOLDS] for i in block] for fold in range(FOLDS)]


def measure(checkpoint: str | Path, entries: Sequence[Labelled]) -> Rows:
    """Return each instance's IoU, boundary IoU and error of the predicted IoU, by prompt."""
    predictor = Predictor(build_sam_groupmix(checkpoint))
    rows: Rows = {}
    for entry in entries:
        predictor.set_embedding(entry.frame.read("cpu").numpy(), entry.frame.size)
        truths = [instance.mask for instance in entry.instances]
        boxes = np.array([instance.box for instance in entry.instances], dtype=np.float64)
        points = np.array([[innermost_pixel(truth)] for truth in truths], dtype=np.float64)
        found: dict[str, list[float]] = {
            "box_baseline": [mask_iou(box_baseline(t.shape, b), t) for t, b in zip(truths, boxes, strict=True)]
        }
        for kind in KINDS:
            for i, truth in enumerate(truths):
                one = slice(i, i + 1)
                prompt = (points[one], np.ones((1, 1)), None) if kind == "point" else (None, None, boxes[one])
                (mask,), (score,) = predictor.predict_single_mask(*prompt)
                iou = mask_iou(mask, truth)
                values = {"iou": iou, "boundary": boundary_iou(mask, truth), "error": abs(float(score) - iou)}
                for name, value in values.items():
                    found.setdefault(f"{kind}_{name}", []).append(value)
        for name, numbers in found.items():
            rows.setdefault(name, []).append(numbers)
    return rows


def kept(path: Path, make: Any) -> Rows:
    """Return the rows in a file, made and written if it is not there."""
    if not path.is_file():
        rows = make()
        path.write_text(json.dumps(rows))
    return dict(json.loads(path.read_text()))


def mean(values: list[list[float]], other: list[list[float]] | None = None) -> list[float]:
    """Return the mean over instances of values, or of their differences to others, with its interval over images."""
    sums = np.array([[sum(v), len(v)] for v in values])
    if other is not None:
        sums[:, 0] -= [sum(v) for v in other]
    drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    means = sums[drawn].sum(1)
    low, high = np.percentile(means[:, 0] / means[:, 1], (2.5, 97.5))
    return [round(float(v), 4) for v in (sums[:, 0].sum() / sums[:, 1].sum(), low, high)]


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several folds as one."""
    return {name: [row for part in parts for row in part[name]] for name in parts[0]}


def adapted(args: argparse.Namespace, checkpoint: str, fold: int, count: int, pool: Sequence[Labelled]) -> Path:
    """Return the weights that `adapt` makes of so many images of the pool."""
    run = args.work / f"{Path(checkpoint).stem}-{fold}-{count}-{args.minutes:g}min"
    weights = run / "weights" / "model.safetensors"
    if not weights.is_file():
        chosen = [pool[i] for i in np.linspace(0, len(pool) - 1, count).round().astype(int)]
        images = args.work / f"{run.name}.txt"
        images.write_text("".join(f"{entry.frame.image.path.absolute()}\n" for entry in chosen))
        recipe = replace(ADAPT, decoder=replace(ADAPT.decoder or DecoderRecipe(), minutes=args.minutes))
        adapt(
            images,
            run,
            recipe,
            RunOptions(resume=True, save_minutes=1),
            labels=args.labelled / "annotations.json",
            checkpoint=checkpoint,
            replay_images=args.replay_images,
            cache=args.work / "cache",
        )
    return run / "weights"


def compare(args: argparse.Namespace, checkpoint: str) -> list[dict[str, Any]]:
    """Return the rows of the result for weights to start from."""
    name = Path(checkpoint).stem
    cache = args.work / "cache"
    entries = load_frames(args.labelled, checkpoint, cache)
    folds = in_folds(entries)
    coco = load_frames(args.coco, checkpoint, cache, args.coco_images) if args.coco else []
    mobile = load_frames(args.labelled, str(args.mobile_sam), cache) if args.mobile_sam else []
    theirs = in_folds(mobile)
    before = [kept(args.work / f"{name}-{i}.json", lambda i=i: measure(checkpoint, folds[i])) for i in args.folds]
    if mobile:
        mobiles = [kept(args.work / f"mobile-{i}.json", lambda i=i: measure(args.mobile_sam, theirs[i])) for i in args.folds]
    coco_before = kept(args.work / f"{name}-coco{len(coco)}.json", lambda: measure(checkpoint, coco)) if coco else None
    rows = []
    for count in args.counts:
        after, coco_after = [], []
        for i in args.folds:
            pool = [entry for entry in entries if not any(entry is other for other in folds[i])]
            weights = adapted(args, checkpoint, i, count, pool)
            path = args.work / f"{weights.parent.name}.json"
            after.append(kept(path, lambda weights=weights, i=i: measure(weights, folds[i])))
            if coco and count == args.coco_count:
                path = args.work / f"{weights.parent.name}-coco{len(coco)}.json"
                coco_after.append(kept(path, lambda weights=weights: measure(weights, coco)))
        a, b = joined(before), joined(after)
        for kind in KINDS:
            row: dict[str, Any] = {
                "checkpoint": name,
                "images": count,
                "prompt": kind,
                "instances": sum(map(len, a["box_iou"])),
            }
            for what in ("iou", "boundary", "error"):
                column = f"{kind}_{what}"
                row[what] = {"before": mean(a[column]), "after": mean(b[column]), "difference": mean(b[column], a[column])}
            row["box_baseline"] = mean(a["box_baseline"])
            if mobile:
                column, m = f"{kind}_iou", joined(mobiles)
                row["mobile_sam"] = {"iou": mean(m[column]), "difference": mean(b[column], m[column])}
                row["mobile_sam"]["boundary"] = mean(m[f"{kind}_boundary"])
            if coco_after and coco_before:
                column = f"{kind}_iou"
                again = joined([coco_before] * len(coco_after))
                row["coco"] = {"before": mean(coco_before[column]), "after": mean(joined(coco_after)[column])}
                row["coco"]["difference"] = mean(joined(coco_after)[column], again[column])
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw mIoU by the number of labelled images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axis, kind in zip(figure.subplots(1, 2), KINDS, strict=True):
        of_kind = [row for row in rows if row["prompt"] == kind]
        for checkpoint, color in zip(dict.fromkeys(row["checkpoint"] for row in of_kind), ("#0072B2", "#D55E00"), strict=False):
            mine = [row for row in of_kind if row["checkpoint"] == checkpoint]
            counts = [0, *(row["images"] for row in mine)]
            points = np.array([mine[0]["iou"]["before"], *(row["iou"]["after"] for row in mine)])
            axis.plot(counts, points[:, 0], "o-", color=color, label=checkpoint)
            axis.fill_between(counts, points[:, 1], points[:, 2], color=color, alpha=0.15)
        if "mobile_sam" in of_kind[0]:
            axis.axhline(of_kind[0]["mobile_sam"]["iou"][0], color="black", linestyle="--", label="MobileSAM")
        axis.set(xlabel="labelled images", ylabel=f"mIoU by {kind}")
        axis.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Adapt, measure, write the figures and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labelled", type=Path, help="a folder with images/ and annotations.json")
    parser.add_argument("--coco", type=Path, help="another such folder, of other objects")
    parser.add_argument("--coco-count", type=int, default=20, help="labelled images of the weights that it is measured with")
    parser.add_argument("--coco-images", type=int, default=30, help="of that folder that are measured")
    parser.add_argument("--mobile-sam", type=Path, help="mobile_sam.pt, or the same as safetensors")
    parser.add_argument("--checkpoints", nargs="+", default=["default", "fast"])
    parser.add_argument("--counts", nargs="+", type=int, default=[5, 10, 20, 40])
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)), help=f"some of 0 to {FOLDS - 1}")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each time")
    parser.add_argument("--replay-images", type=Path, help="images of other objects, for adapt")
    parser.add_argument("--work", type=Path, default=Path("runs/adapt_labels"), help="folder for what is done")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/adapt_labels.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/adapt_labels.png"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = [row for checkpoint in args.checkpoints for row in compare(args, checkpoint)]
    result = {
        **header(f"python benchmarks/adapt_labels.py {args.labelled.name} --minutes {args.minutes:g}"),
        "protocol": (
            f"{len(args.folds)} of {FOLDS} folds, {args.minutes:g} minutes of training each. A fold has every fifth of "
            f"{BLOCKS} blocks of neighbouring images, so it shares cameras with the images that are adapted to, but no "
            "neighbours. mIoU is over instances, by the true box, and by the innermost point with the best of three masks by "
            "predicted IoU. "
            "Intervals are 95 %, by bootstrap over images."
        ),
        "rows": rows,
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    plot(rows, args.plot)
    print(f"wrote {args.output} and {args.plot}")


if __name__ == "__main__":
    main()
