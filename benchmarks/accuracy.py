"""Mask quality of some weights, of the teacher and of a filled box, on the same pictures with COCO-format masks.

    python benchmarks/accuracy.py DATA --teacher mobile_sam.pt      # DATA/annotations.json and DATA/images/

Through the stock SamPredictor at 1024. Prompts are each annotation's box, and its innermost pixel. Of a box the single mask
is taken, of a point the best of three by predicted IoU. mIoU is the mean over annotations; crowds are left out. Intervals are
95 %, by bootstrap over pictures.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from segment_anything import SamPredictor
from tqdm import tqdm

from groupmix_sam import build_sam_groupmix
from groupmix_sam.errors import MissingExtraError
from groupmix_sam.images import read_image

try:
    from pycocotools.coco import COCO
except ImportError as e:
    raise MissingExtraError.of("pycocotools", "eval") from e


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def innermost_pixel(mask: np.ndarray) -> tuple[int, int]:
    """Return x and y of a pixel that is farthest from the mask's outside, by chessboard distance."""
    picture = Image.fromarray(np.pad(mask, 1).astype(np.uint8) * 255)
    while (smaller := picture.filter(ImageFilter.MinFilter(3))).getbbox():
        picture = smaller
    ys, xs = np.nonzero(np.asarray(picture))
    middle = len(xs) // 2
    return int(xs[middle]) - 1, int(ys[middle]) - 1


def filled_box(shape: tuple[int, int], box: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    left, top, right, bottom = np.round(box).astype(int)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask


def annotations(coco: COCO, image_id: int) -> list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]:
    """Return mask, box (left, top, right, bottom) and innermost pixel of each annotation of a picture."""
    found = []
    for annotation in coco.loadAnns(coco.getAnnIds(image_id, iscrowd=False)):
        mask = coco.annToMask(annotation).astype(bool)
        if mask.any():
            left, top, width, height = annotation["bbox"]
            found.append((mask, np.array([left, top, left + width, top + height]), innermost_pixel(mask)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", help="MobileSAM's weights")
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--encoder", default="gmf_sam_2282")
    parser.add_argument("--limit", type=int, help="only the first pictures")
    args = parser.parse_args()

    coco = COCO(str(args.data / "annotations.json"))
    predictors = {args.encoder: SamPredictor(build_sam_groupmix(args.checkpoint, encoder=args.encoder))}
    if args.teacher:
        predictors["MobileSAM"] = SamPredictor(build_sam_groupmix(args.teacher, encoder="sam_tiny_vit_5m"))
    scores: dict[str, list[list[float]]] = {}  # what was measured: for each picture, for each annotation
    for image_id in tqdm(coco.getImgIds()[: args.limit]):
        image = read_image(args.data / "images" / coco.loadImgs(image_id)[0]["file_name"])
        things = annotations(coco, image_id)
        if not things:
            continue
        if image.shape[:2] != things[0][0].shape:
            raise SystemExit(
                f"picture {image_id} is {image.shape[:2]}, its masks are {things[0][0].shape}: is it turned by EXIF?"
            )
        row = {"filled box": [iou(mask, filled_box(mask.shape, box)) for mask, box, _ in things]}
        for name, predictor in predictors.items():
            predictor.set_image(image)
            boxes, points = row.setdefault(f"{name}, box", []), row.setdefault(f"{name}, point", [])
            for mask, box, point in things:
                masks, _, _ = predictor.predict(box=box, multimask_output=False)
                boxes.append(iou(mask, masks[0]))
                masks, predicted, _ = predictor.predict(np.array([point]), np.array([1]))
                points.append(iou(mask, masks[predicted.argmax()]))
        for key, values in row.items():
            scores.setdefault(key, []).append(values)

    rng = np.random.default_rng(0)
    pictures = len(scores["filled box"])
    samples = rng.integers(pictures, size=(2000, pictures))
    sums = {k: np.array([[sum(v), len(v)] for v in pages]) for k, pages in scores.items()}

    def resampled(key: str) -> np.ndarray:
        drawn = sums[key][samples].sum(1)
        return drawn[:, 0] / drawn[:, 1]

    def line(name: str, value: float, draws: np.ndarray) -> None:
        low, high = np.quantile(draws, [0.025, 0.975])
        print(f"  {name:28} {value:.3f} ({low:.3f} to {high:.3f})")

    total = {k: v[:, 0].sum() / v[:, 1].sum() for k, v in sums.items()}
    print(f"{args.data.name}: {pictures} pictures, {int(sums['filled box'][:, 1].sum())} annotations, mIoU (95 % interval)")
    for key in sums:
        line(key, total[key], resampled(key))
    if args.teacher:
        for prompt in ("box", "point"):
            ours, theirs = f"{args.encoder}, {prompt}", f"MobileSAM, {prompt}"
            line(f"ratio to MobileSAM, {prompt}", total[ours] / total[theirs], resampled(ours) / resampled(theirs))
        gain = [resampled(k) - resampled("filled box") for k in (f"{args.encoder}, box", "MobileSAM, box")]
        value = (total[f"{args.encoder}, box"] - total["filled box"]) / (total["MobileSAM, box"] - total["filled box"])
        line("share of the gain over a box", value, gain[0] / gain[1])


if __name__ == "__main__":
    main()
