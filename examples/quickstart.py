"""Masks of a photo by a box and by a point, with the weights that ship; no network, no GPU.

    python examples/quickstart.py
    python examples/quickstart.py photo.jpg --box 170,16,420,312 --point 365,290

writes quickstart.png: the image with the box's mask in the first colour and the point's in the second.
"""

import argparse
from pathlib import Path

import numpy as np
from segment_anything import SamPredictor

from groupmix_sam import build_sam_groupmix
from groupmix_sam.images import read_image
from groupmix_sam.prompts import as_box, as_points
from groupmix_sam.visualize import draw_masks

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("image", nargs="?", default=Path(__file__).with_name("coffee.jpg"), type=Path)
parser.add_argument("--box", default="170,16,420,312", help="left,top,right,bottom in pixels")
parser.add_argument("--point", default="365,290", help="x,y in pixels")
parser.add_argument("--output", default=Path("quickstart.png"), type=Path)
args = parser.parse_args()

image = read_image(args.image)
box = as_box(args.box.split(","), image.shape[:2])
points, labels = as_points([args.point.split(",")], None, image.shape[:2])

predictor = SamPredictor(build_sam_groupmix())
predictor.set_image(image)  # the encoder: once an image

# A box means one instance: ask for one mask.
(cup,), (cup_score,), _ = predictor.predict(box=box, multimask_output=False)
# A point may mean a part or the whole: ask for three, and take the one that the model thinks best of.
masks, scores, _ = predictor.predict(points, labels, multimask_output=True)
best = int(np.argmax(scores))

draw_masks(image, [cup, masks[best]], points=points, labels=labels, box=box).save(args.output)
print(f"by the box: {100 * cup.mean():.1f} % of the image, predicted IoU {cup_score:.2f}")
for mask, score in zip(masks, scores, strict=True):
    print(f"by the point: {100 * mask.mean():.1f} % of the image, predicted IoU {score:.2f}")
print(f"wrote {args.output}")
