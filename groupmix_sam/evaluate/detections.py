"""Masks for a detector's boxes, and their average precision by COCO's rules."""

import contextlib
import io
import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, MissingExtraError
from ..files import sha256
from ..inference.mask_predictor import MaskPredictor
from ..prompts import Prompt
from .dataset import Row, encode, hash_images, image_names, load_coco, read_labelled
from .protocol import Protocol, predict_mask
from .results import Result

try:
    from faster_coco_eval import COCO, COCOeval_faster
except ImportError as e:
    raise MissingExtraError.of("faster_coco_eval", "eval") from e

__all__ = ["DetectionDataset", "average_precision"]

NAMES = ("AP", "AP50", "AP75", "AP S", "AP M", "AP L")


class DetectionDataset:
    """Boxes of a detector in COCO's results format: a list of `image_id`, `category_id`, `bbox` and `score`.

    A mask keeps the class and score of its box. It is empty for a box without area or outside the image.

    Args:
        detections: The JSON file.
        annotations: The COCO-format file that names the images.
        images: The folder that its `file_name`s are relative to.
        protocol: How the mask is chosen. The prompts are the boxes.
        limit: Only the first images.
        ignore_exif: As for `LabelledDataset`.

    Raises:
        InvalidInputError: the file is not in that format, or names an image that is missing.
    """

    kind = "detections"

    def __init__(
        self,
        detections: str | PathLike[str],
        annotations: str | PathLike[str],
        images: str | PathLike[str],
        protocol: Protocol,
        limit: int | None = None,
        ignore_exif: bool = False,
    ) -> None:
        self.ignore_exif = ignore_exif
        self.file, self.annotations, self.folder, self.protocol = Path(detections), Path(annotations), Path(images), protocol
        names = image_names(load_coco(annotations), Path(annotations))
        self.found: dict[str, list[Row]] = {name: [] for name in list(names.values())[:limit]}
        try:
            for entry in json.loads(self.file.read_text(encoding="utf-8-sig")):
                left, top, width, height = map(float, entry["bbox"])
                row: Row = {"image_id": entry["image_id"], "category_id": int(entry["category_id"])}
                row |= {"score": float(entry["score"]), "box": [left, top, left + width, top + height]}
                self.found.get(names[entry["image_id"]], []).append(row)
        except (OSError, OverflowError, ValueError, TypeError, KeyError) as e:
            raise InvalidInputError(
                f"{detections} holds no detections in these images ({e!r}): "
                "give a list of image_id, category_id, bbox and score."
            ) from e
        for image in self.found:
            if not (self.folder / image).is_file():
                raise InvalidInputError(f"{self.folder / image}, which {annotations} names, is not there: give its folder.")

    def record(self) -> dict[str, Any]:
        """Return what a result records of the data."""
        digests = {"detections": str(self.file), "sha256": sha256(self.file), "annotations_sha256": sha256(self.annotations)}
        digests["images_sha256"] = hash_images(self.folder, self.found)
        record = {**digests, "folder": str(self.folder), "images": len(self.found)}
        return record | ({"ignore_exif": True} if self.ignore_exif else {})

    def images(self) -> list[str]:
        """Return the names of the images, in the annotations' order."""
        return list(self.found)

    def measure(self, predictor: MaskPredictor, name: str) -> list[Row]:
        """Return a row per detection in an image."""
        if not self.found[name]:
            return []
        image = read_labelled(self.folder / name, self.ignore_exif)
        predictor.set_image(image)
        rows = []
        for i, found in enumerate(self.found[name]):
            mask, predicted = self._ask(predictor, Prompt(box=found["box"]), image.shape[:2])
            row = {"image": name, "id": i, "prompt": "box", **found, "predicted_iou": predicted}
            rows.append({**row, "size": list(mask.shape), "mask": encode(mask)})
        return rows

    def _ask(self, predictor: MaskPredictor, prompt: Prompt, size: tuple[int, int]) -> tuple[NDArray[np.bool_], float]:
        """Return the mask for a box and its predicted IoU; an empty mask for a box that no model can take."""
        try:
            prompt.check(size)
        except InvalidInputError:
            return np.zeros(size, dtype=bool), 0.0
        answer = predict_mask(predictor, prompt, self.protocol.selection_for("box"))
        return answer.mask, answer.predicted_iou


def average_precision(result: Result, annotations: str | PathLike[str]) -> dict[str, float]:
    """Return COCO's mask AP, AP50, AP75 and AP by size for a result of detections; -1 where no annotation has that size."""
    masks = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "score": row["score"],
            "segmentation": {"size": row["size"], "counts": row["mask"]},
        }
        for row in result.rows
    ]
    coco = load_coco(annotations)
    names = image_names(coco, Path(annotations))  # in the order by which `DetectionDataset` takes the first ones
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(coco.dataset)
        evaluation = COCOeval_faster(truth, truth.loadRes(masks), iouType="segm")
        evaluation.params.imgIds = list(names)[: result.data["images"]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats[:6]), strict=True))
