"""Drawn images with COCO-format masks, and a predictor whose masks can be worked out by hand."""

import json

import numpy as np
from PIL import Image, ImageDraw


def draw_dataset(folder, count=3, width=96, height=64):
    """Write images/ and annotations.json: each image has a disc, a square, and a crowd in a corner."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        image = Image.new("RGB", (width, height), (30, 60, 40 + 10 * i))
        draw = ImageDraw.Draw(image)
        left = 8 + 4 * i
        draw.ellipse((left, 10, left + 24, 34), fill=(220, 60, 60))
        draw.rectangle((60, 20, 60 + 4 * i + 7, 39), fill=(240, 220, 90))
        image.save(folder / "images" / f"{i}.png")
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": width, "height": height})
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        disc = np.stack([left + 12 + 12 * np.cos(angles), 22 + 12 * np.sin(angles)], 1).round(1).reshape(-1).tolist()
        right = 60 + 4 * i + 8
        square = [60, 20, right, 20, right, 40, 60, 40]
        corner = [0, 50, 20, 50, 20, 64, 0, 64]
        for number, (polygon, crowd) in enumerate(((disc, 0), (square, 0), (corner, 1))):
            xs, ys = polygon[::2], polygon[1::2]
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            annotation = {"id": 100 * i + number + 1, "image_id": 10 + i, "category_id": 1, "iscrowd": crowd, "bbox": box}
            annotations.append({**annotation, "area": box[2] * box[3], "segmentation": [polygon]})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder


class PlainPredictor:
    """Of a box, its upper half; of points, three rectangles about the first, of which it thinks the second best."""

    def __init__(self):
        self.images = 0

    def set_image(self, image):
        self.size = image.shape[:2]
        self.images += 1

    def predict(self, point_coords, point_labels, box, mask_input=None, multimask_output=True, return_logits=False):
        masks = np.zeros((3 if multimask_output else 1, *self.size), dtype=bool)
        for i, mask in enumerate(masks):
            if box is not None:
                left, top, right, bottom = np.round(box).astype(int)
                mask[top : top + (bottom - top) // (2 if not multimask_output else 1 + i), left:right] = True
            else:
                x, y = point_coords[0].astype(int)
                reach = 4 * (i + 1)
                mask[max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach] = True
        scores = np.array([0.5, 0.9, 0.7][: len(masks)] if multimask_output else [0.8])
        if return_logits:  # the second is unsure about a rim of one row
            masks = np.where(masks, 4.0, -4.0)
            masks[1:2, 0] = 0.5
        return masks, scores, np.zeros((len(masks), 256, 256), dtype=np.float32)
