"""Adapt the weights that ship to the frames of one line, and measure whether it helped.

    pip install 'groupmix-sam[distill]'
    python examples/adapt_to_your_line.py --teacher mobile_sam.pt
    python examples/adapt_to_your_line.py --teacher mobile_sam.pt --frames my_frames/ --minutes 20

Without --frames it draws a line: washers, nuts and plates on a belt. It trains on 24 such frames, without their masks, and then
holds masks against the true ones on 6 others. mobile_sam.pt comes from https://github.com/ChaoningZhang/MobileSAM.

Drawn parts are easy and unlike photos: expect little of these figures, and more of your own frames.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from segment_anything import SamPredictor

from groupmix_sam import build_sam_groupmix
from groupmix_sam.distill import ADAPT, adapt
from groupmix_sam.visualize import draw_masks

Frame = tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]  # the image, and each part's box and mask


def draw_frame(seed: int, width: int = 480, height: int = 360) -> Frame:
    """Draw a belt with five parts; return it with each part's box (left, top, right, bottom) and mask."""
    rng = np.random.default_rng(seed)
    belt = Image.fromarray(rng.normal(70, 8, (height, width)).clip(0, 255).astype(np.uint8)).convert("RGB")
    parts = []
    for i in range(5):
        x, y = 60 + 90 * i + int(rng.integers(-15, 16)), int(rng.integers(70, height - 70))
        radius, corners = int(rng.integers(20, 40)), (0, 6, 4)[rng.integers(3)]
        mask = Image.new("1", (width, height))
        pen, frame = ImageDraw.Draw(mask), (x - radius, y - radius, x + radius, y + radius)
        if corners:
            pen.regular_polygon((x, y, radius), corners, int(rng.integers(90)), fill=1)
        else:
            pen.ellipse(frame, fill=1)
            pen.ellipse((x - radius // 2, y - radius // 2, x + radius // 2, y + radius // 2), fill=0)
        steel = Image.fromarray(rng.normal(rng.integers(120, 200), 12, (height, width)).clip(0, 255).astype(np.uint8))
        belt.paste(steel, mask=mask)
        truth = np.asarray(mask)
        rows, columns = np.nonzero(truth)
        parts.append((np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]), truth))
    return np.asarray(belt.filter(ImageFilter.GaussianBlur(1))), parts


def measure(predictor: SamPredictor, frames: list[Frame]) -> float:
    """Return the mean IoU of the masks by box with the true ones."""
    ious = []
    for image, parts in frames:
        predictor.set_image(image)
        for box, truth in parts:
            (mask,), _, _ = predictor.predict(box=box, multimask_output=False)
            ious.append((mask & truth).sum() / (mask | truth).sum())
    return float(np.mean(ious))


def main() -> None:
    """Adapt, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="mobile_sam.pt")
    parser.add_argument("--frames", type=Path, help="a folder of your own frames; by default some are drawn")
    parser.add_argument("--count", type=int, default=24, help="how many to draw; a quarter as many more to measure on")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--output", type=Path, default=Path("runs/line"))
    parser.add_argument("--checkpoint", default="default", help="weights to start from")
    args = parser.parse_args()

    frames = args.frames
    if frames is None:
        frames = args.output.with_name(f"{args.output.name}_frames")
        frames.mkdir(parents=True, exist_ok=True)
        for seed in range(args.count):
            Image.fromarray(draw_frame(seed)[0]).save(frames / f"{seed:02}.png")

    recipe = replace(ADAPT, minutes=args.minutes)
    record = adapt(frames, args.output, recipe, teacher=args.teacher, checkpoint=args.checkpoint)
    mean_before, mean_after = record["teacher_iou"]["before"][0], record["teacher_iou"]["after"][0]
    print(f"IoU with the teacher on frames that were held out: {mean_before:.3f} before, {mean_after:.3f} after")

    if args.frames is None:
        unseen = [draw_frame(1000 + seed) for seed in range(max(1, args.count // 4))]
        for name, checkpoint in (("before", args.checkpoint), ("after", args.output / "weights")):
            predictor = SamPredictor(build_sam_groupmix(checkpoint))
            print(f"mIoU with the drawn truth, by box, {name}: {measure(predictor, unseen):.3f}")
        image, parts = unseen[0]
        predictor.set_image(image)
        masks = [predictor.predict(box=box, multimask_output=False)[0][0] for box, _ in parts]
        draw_masks(image, masks).save(args.output / "masks.png")
        print(f"wrote {args.output / 'masks.png'}")
    print(f"use it: build_sam_groupmix({str(args.output / 'weights')!r})")


if __name__ == "__main__":
    main()
