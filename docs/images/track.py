"""Make track.webp: a cup on a line, drawn from examples/coffee.jpg (CC0), and the masks of the tracker that ships.

    python docs/images/track.py docs/images/track.webp

The cup is cut out of the photo by the default weights, and moves over a drawn belt, behind a drawn machine and out again. A
spoon comes the other way. The fast weights follow the cup from a box in the first frame: masks and states are the tracker's.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from groupmix_sam.images import read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.live import TrackedObject, Tracker
from groupmix_sam.visualize import draw_masks

PHOTO = Path(__file__).parents[2] / "examples" / "coffee.jpg"
SIZE = (640, 360)
SHOWN = (480, 270)
FRAMES, RATE = 100, 10
BOXES = {"cup": (170, 16, 420, 312), "spoon": (265, 262, 470, 332)}
MACHINE = (260, 0, 460, 360)
COLORS = {"tracked": (0, 158, 115), "lost": (213, 94, 0), "found": (0, 114, 178)}


def cut_out(predictor: Predictor, box: tuple[int, int, int, int], width: int) -> Image.Image:
    """Return what a box of the photo holds, transparent around its mask, `width` pixels wide."""
    photo = read_image(PHOTO)
    predictor.set_image(photo)
    masks, _, _ = predictor.predict(box=np.array(box), multimask_output=False)
    alpha = Image.fromarray(masks[0]).convert("L").filter(ImageFilter.GaussianBlur(0.7))
    part = Image.fromarray(np.dstack([photo, np.asarray(alpha)])).crop(alpha.getbbox())
    return part.resize((width, round(width * part.height / part.width)), Image.Resampling.LANCZOS)


def draw_line(cup: Image.Image, spoon: Image.Image) -> Iterator[Image.Image]:
    """Yield the frames: both on the belt, and the machine before them."""
    noise = np.random.default_rng(0)
    grain = noise.normal(0, 3, (SIZE[1], SIZE[0], 1))
    for i in range(FRAMES):
        frame = Image.new("RGB", SIZE, (196, 200, 202))
        draw = ImageDraw.Draw(frame)
        draw.rectangle((0, 70, 640, 290), fill=(74, 80, 86))
        for x in range(-80 + 5 * i % 80, 640, 80):  # the belt's ribs
            draw.line((x, 71, x, 289), fill=(64, 69, 75), width=3)
        for y in (64, 290):
            draw.rectangle((0, y, 640, y + 8), fill=(150, 155, 158))
            for x in range(20, 640, 60):
                draw.ellipse((x - 3, y + 1, x + 3, y + 7), fill=(110, 115, 118))
        x, y = cup_place(i, cup.size)
        frame.paste(cup, (x, y), cup)
        frame.paste(spoon, (560 - 5 * i, 228), spoon)
        draw.rectangle(MACHINE, fill=(226, 178, 62))
        draw.rectangle((MACHINE[0], 0, MACHINE[0] + 8, 360), fill=(190, 146, 40))
        draw.rectangle((MACHINE[2] - 8, 0, MACHINE[2], 360), fill=(190, 146, 40))
        draw.rectangle((315, 150, 405, 200), fill=(60, 64, 68))
        draw.ellipse((375, 165, 395, 185), fill=(90, 200, 120))
        pixels = np.asarray(frame.filter(ImageFilter.GaussianBlur(0.5))) + grain + noise.normal(0, 2, (SIZE[1], SIZE[0], 1))
        yield Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def cup_place(i: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the cup's left top corner in frame `i`: from the left edge to the right one, and it rests at both ends."""
    share = np.clip((i - 6) / (FRAMES - 20), 0, 1)
    return round(16 + share * (SIZE[0] - size[0] - 32)), 178 - size[1] // 2


def show(frame: Image.Image, item: TrackedObject) -> Image.Image:
    """Return the frame with the mask and the state, at the size that is shown."""
    masks = [] if item.mask is None else [item.mask]
    shown = draw_masks(np.asarray(frame), masks).resize(SHOWN, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(shown)
    text = "found again" if item.state == "found" else item.state
    font = ImageFont.load_default(20)
    draw.rounded_rectangle((10, 8, 24 + draw.textlength(text, font), 38), 6, fill=COLORS[item.state])
    draw.text((17, 11), text, (255, 255, 255), font)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="ends in .webp")
    args = parser.parse_args()
    cutter = Predictor.from_pretrained()
    frames = list(draw_line(cut_out(cutter, BOXES["cup"], 130), cut_out(cutter, BOXES["spoon"], 56)))
    tracker = Tracker(Predictor.from_pretrained("fast"))
    x, y = cup_place(0, (130, 1))[0], 100
    tracker.start(np.asarray(frames[0]), boxes=[[x, y, x + 130, y + 156]])
    shown, found = [], 0
    for frame in frames:
        (item,) = tracker.update(np.asarray(frame))
        found = RATE if item.state == "found" else found - 1  # for a second, so that it can be read
        state = "found" if found > 0 and item.state == "tracked" else item.state
        shown.append(show(frame, TrackedObject(item.id, item.mask, item.box, item.score, state)))
    shown[0].save(args.output, save_all=True, append_images=shown[1:], duration=1000 // RATE, loop=0, quality=75, method=6)
    print(f"wrote {args.output}, {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
