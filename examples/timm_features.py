"""The encoder alone, through timm: where else in the image does it look like here?

    python examples/timm_features.py
    python examples/timm_features.py photo.jpg --point 365,290

writes features.png: the image, and beside it how alike the features are to those at the point, from dark to bright. Then the
maps of every stage, as a detector or a segmentation head takes them.
"""

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

import groupmix_sam  # noqa: F401  registers the encoders in timm
from groupmix_sam.images import read_image
from groupmix_sam.visualize import draw_masks

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("image", nargs="?", default=Path(__file__).with_name("coffee.jpg"), type=Path)
parser.add_argument("--point", default="365,290", help="x,y in pixels")
parser.add_argument("--output", default=Path("features.png"), type=Path)
args = parser.parse_args()

image = read_image(args.image)
height, width = image.shape[:2]
x, y = map(float, args.point.split(","))

encoder = timm.create_model("gmf_sam_2282", pretrained=True).eval()
config = timm.data.resolve_model_data_config(encoder)  # SAM's mean and standard deviation
scale = 1024 / max(height, width)
size = (16 * round(height * scale / 16), 16 * round(width * scale / 16))  # no padding needed: any multiple of 16 will do

pixels = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
normalised = (np.asarray(pixels) / 255 - config["mean"]) / config["std"]
batch = torch.from_numpy(normalised).float().permute(2, 0, 1)[None]
with torch.inference_mode():
    features = encoder(batch)  # 1 x 256 x H/16 x W/16
print(f"{tuple(batch.shape)} -> {tuple(features.shape)}")

# Each channel has a large mean of its own, which is alike everywhere and says nothing: away with it.
centred = features - features.mean((2, 3), keepdim=True)
row, column = int(y / height * features.shape[2]), int(x / width * features.shape[3])
alike = cosine_similarity(centred, centred[:, :, row : row + 1, column : column + 1])[0]
heat = Image.fromarray((255 * alike.clamp(0, 1)).byte().numpy()).resize((width, height), Image.Resampling.BILINEAR)

sheet = Image.new("RGB", (2 * width, height))
sheet.paste(draw_masks(image, [], points=np.array([[x, y]])), (0, 0))
sheet.paste(heat.convert("RGB"), (width, 0))
sheet.save(args.output)

backbone = timm.create_model("gmf_sam_2282", pretrained=True, features_only=True).eval()  # for a head of your own
with torch.inference_mode():
    for info, maps in zip(backbone.feature_info.get_dicts(), backbone(batch), strict=True):
        print(f"{info['module']}: stride {info['reduction']}, {tuple(maps.shape)}")
print(f"wrote {args.output}")
