"""A predictor without a model, by colour, and videos that are drawn: what the tracker does can be told by hand."""

import numpy as np

GRID = 32


class ColourPredictor:
    """Features are random waves of a cell's mean colour; a mask is what has the colour of the prompt, in its box."""

    def __init__(self):
        self.waves = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32) / 25
        self.encoded = 0

    def set_image(self, image, image_format="RGB"):
        assert image_format == "RGB"
        self.image = image.astype(np.float32)
        self.encoded += 1
        height, width = image.shape[:2]
        self.cell = max(height, width) / GRID
        square = np.zeros((max(height, width),) * 2 + (3,), np.float32)
        square[:height, :width] = image
        at = np.floor(np.arange(GRID) * self.cell).astype(int)
        sums = np.add.reduceat(np.add.reduceat(square, at, 0), at, 1)
        sizes = np.diff(at, append=len(square))
        angles = sums / (sizes[:, None] * sizes)[..., None] @ self.waves
        self.features = np.concatenate([np.sin(angles), np.cos(angles)], 2).transpose(2, 0, 1)[None]

    def get_image_embedding(self):
        return self.features

    def predict_prompts(
        self, point_coords=None, point_labels=None, boxes=None, mask_input=None, multimask_output=True, return_logits=False
    ):
        height, width = self.image.shape[:2]
        at = np.minimum(((np.arange(4 * GRID) + 0.5) * self.cell / 4).astype(int), max(height, width) - 1)
        found = []
        for i in range(len(boxes if boxes is not None else point_coords)):
            inside = np.ones((height, width), bool)
            if boxes is not None:
                x0, y0, x1, y1 = np.round(boxes[i]).astype(int)
                inside[:] = False
                inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
                x, y = (x0 + x1) // 2, (y0 + y1) // 2
            else:
                x, y = point_coords[i, 0].astype(int)
            colour = self.image[min(y, height - 1), min(x, width - 1)]
            if mask_input is not None:
                sure = mask_input[i, 0] > 0
                rows, columns = np.nonzero(sure)
                colour = np.median(self.image[at[rows].clip(max=height - 1), at[columns].clip(max=width - 1)], axis=0)
            found.append((np.abs(self.image - colour).max(2) < 40) & inside)
        masks = np.array(found)[:, None].repeat(3 if multimask_output else 1, 1)
        square = np.zeros((*masks.shape[:2], max(height, width), max(height, width)), bool)
        square[..., :height, :width] = masks
        logits = np.where(square[..., at[:, None], at], 8, -8).astype(np.float32)
        return masks, np.full(masks.shape[:2], 0.9, np.float32), logits

    def predict_logits(self, *prompts, **options):
        return self.predict_prompts(*prompts, **options)[1:]


RED, GREEN, BLUE = (200, 40, 40), (40, 180, 60), (40, 60, 200)


def scene(*things, size=(120, 160), seed=0):
    """Return a noisy grey frame with things drawn over it, each a colour and a box, x0, y0, x1, y1; the last is on top."""
    frame = np.random.default_rng(seed).integers(110, 130, (*size, 3)).astype(np.uint8)
    for colour, (x0, y0, x1, y1) in things:
        frame[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = colour
    return frame


def rectangle(box, size=(120, 160)):
    x0, y0, x1, y1 = box
    mask = np.zeros(size, bool)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask
