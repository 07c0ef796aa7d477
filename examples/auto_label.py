"""Label a video or images by themselves, as a start for a labelling tool.

    python examples/auto_label.py examples/coffee.jpg
    python examples/auto_label.py line.mp4 --every 30 --category part
    python examples/auto_label.py frames/ --points-per-side 24 --output labelled

Everything that is found in an image becomes an instance of one category. The output folder has the images, a LabelMe file
beside each, and annotations.json in COCO's format. labelme and X-AnyLabeling open the folder: delete what you
do not need, rename the rest, correct outlines. `groupmix_sam.annotations.from_labelme` reads the corrected files back, and
`to_coco` makes a COCO file of them, which `groupmix-sam evaluate` and most trainers take.

Needs OpenCV: pip install 'groupmix-sam[stream]'
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupmix_sam.annotations import AnnotatedImage, to_coco, to_labelme
from groupmix_sam.errors import ImageReadError, InvalidInputError
from groupmix_sam.images import ImageFile, name_images
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.automatic import everything
from groupmix_sam.live.sources import Frames

VIDEOS = {".avi", ".mkv", ".mov", ".mp4", ".webm"}


def images_of(source: Path, every: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield names and images, RGB: of a video one frame in `every`. One that cannot be read is named and left out."""
    if source.suffix.lower() in VIDEOS:
        for frame in Frames(str(source)):
            if frame.number % every == 0:
                yield f"{source.stem}_{frame.number:06d}", np.ascontiguousarray(frame.image[:, :, ::-1])
        return
    named: dict[str, ImageFile] = {}
    for path, image in name_images([source]).items():
        name = Path(path).with_suffix("").as_posix().replace("/", "_")
        if name in named:
            raise InvalidInputError(f"{named[name]} and {image} would both be {name}.png: rename one of them.")
        named[name] = image
    for name, image in named.items():
        try:
            yield name, image.decode()
        except ImageReadError as e:
            print(f"skipped: {e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a video, an image or a folder of images")
    parser.add_argument("--output", type=Path, default=Path("labelled"), help="folder to write to")
    parser.add_argument("--category", default="object", help="the name of what is found")
    parser.add_argument("--every", type=int, default=30, help="of a video, take one frame in this many")
    parser.add_argument("--points-per-side", type=int, default=12, help="points per side of the prompt grid")
    # Lower than SAM's own 0.88 and 0.95: it is quicker to delete than to draw.
    parser.add_argument("--pred-iou-thresh", type=float, default=0.8, help="drop masks with a lower predicted IoU")
    parser.add_argument(
        "--stability-score-thresh", type=float, default=0.85, help="drop masks that change more when the mask threshold moves"
    )
    parser.add_argument("--min-mask-area", type=int, default=200, help="drop masks with fewer pixels")
    parser.add_argument("--checkpoint", default="default", help="weights, or a folder that `groupmix-sam export` wrote")
    parser.add_argument("--image-size", type=int, help="of weights: side in pixels that images are resized to")
    options = parser.parse_args()
    if any(options.output.glob("*.json")):
        parser.error(f"{options.output} has labels already, which may have been corrected: give another --output")
    if options.output.resolve() in (options.source.resolve(), options.source.resolve().parent):
        parser.error(f"{options.output} has what is to be labelled, and it would be written over: give another --output")

    predictor = Predictor.from_pretrained(options.checkpoint, image_size=options.image_size)
    options.output.mkdir(parents=True, exist_ok=True)
    done: list[AnnotatedImage] = []
    try:
        for name, image in images_of(options.source, options.every):
            instances = everything(
                predictor,
                image,
                points_per_side=options.points_per_side,
                pred_iou_thresh=options.pred_iou_thresh,
                stability_score_thresh=options.stability_score_thresh,
                min_mask_area=options.min_mask_area,
                category=options.category,
            )
            path = options.output / f"{name}.png"
            Image.fromarray(image).save(path)
            annotated = AnnotatedImage(path, (image.shape[0], image.shape[1]), instances)
            labels = json.dumps(to_labelme(annotated, options.output), indent=2)
            path.with_suffix(".json").write_text(labels, encoding="utf-8")
            done.append(annotated)
            print(f"{path}: {len(instances)} instances")
    finally:  # also when Ctrl-C or an error cuts it short
        if done:
            coco = to_coco(done, options.output, [options.category])
            (options.output / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")
            print(f"wrote {options.output}: annotations.json, and {len(done)} x image and LabelMe file")


if __name__ == "__main__":
    main()
