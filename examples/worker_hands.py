"""The paper's use: masks of workers' hands, each prompted by the hand's centre.

    pip install groupmix-sam 'mediapipe==0.10.21'
    python examples/worker_hands.py my_frames/
    python examples/worker_hands.py frame.jpg --hand 310,240 --hand 120,260

For every image it writes NAME_hands.png into --output, and for all of them hands.csv, a line a hand: `image,x,y`, which
`groupmix-sam evaluate --prompts` and `groupmix-sam compare --prompts` take (the paper's Table 3 and Figure 4).

Hands are found by mediapipe's hand landmarks. Its wheel of version 0.10.21 has the models in it (newer ones fetch them), needs
Python 3.12 or older, and brings NumPy 1: give it an environment of its own. Without it, --hand says where the hands are, and
any other detector may take the place of `find_hands`.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from groupmix_sam.images import ImageFile, find_images
from groupmix_sam.inference import Predictor
from groupmix_sam.prompts import as_points
from groupmix_sam.visualize import draw_masks

PALM = (0, 5, 9, 13, 17)  # of mediapipe's 21 landmarks: the wrist, and where each finger but the thumb begins


def hand_finder() -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from an image to the centres of the palms in it, N x 2, in pixels, x before y."""
    try:
        from mediapipe.python.solutions.hands import Hands  # in 0.10.21, and gone since
    except ImportError:
        raise SystemExit(
            "mediapipe 0.10.21 is not installed: see the head of this file, or say where with --hand x,y"
        ) from None
    detector = Hands(static_image_mode=True, max_num_hands=8, min_detection_confidence=0.5)

    def find_hands(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        found = detector.process(image).multi_hand_landmarks or []
        palms = [np.array([[hand.landmark[i].x * width, hand.landmark[i].y * height] for i in PALM]) for hand in found]
        centres = np.array([palm.mean(0) for palm in palms]).reshape(-1, 2)
        return centres[((centres >= 0) & (centres < (width, height))).all(1)]

    return find_hands


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="an image or a folder of them")
    parser.add_argument("--hand", action="append", help="x,y in pixels of a hand, in place of the detector; may be given again")
    parser.add_argument("--checkpoint", default="default", help="weights, or a folder that `groupmix-sam export` wrote")
    parser.add_argument("--output", type=Path, default=Path("hands"))
    args = parser.parse_args(arguments)

    centres = np.array([hand.split(",") for hand in args.hand or []], dtype=float).reshape(-1, 2)
    find_hands = hand_finder() if not args.hand else lambda image: as_points(centres, None, image.shape[:2])[0]
    predictor = Predictor.from_pretrained(args.checkpoint)
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "hands.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("image", "x", "y"))
        folder = args.images.parent if args.images.is_file() else args.images
        for source in [ImageFile(args.images)] if args.images.is_file() else find_images(folder):
            name = source.path.relative_to(folder)
            image = source.decode()
            points = find_hands(image)
            masks = []
            if len(points):
                predictor.set_image(image)
                # One point each, so P x 1 x 2; of a point's three masks the one that the model thinks best of.
                masks = list(predictor.predict_single_mask(points[:, None], np.ones((len(points), 1), dtype=int))[0])
            table.writerows((name.as_posix(), round(x, 1), round(y, 1)) for x, y in points)
            draw_masks(image, masks, points=points).save(args.output / f"{'_'.join(name.with_suffix('').parts)}_hands.png")
            print(f"{name}: {len(points)} hands")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
