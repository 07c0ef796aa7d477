"""Masks for another detector's boxes, and their average precision by COCO's rules."""

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
from ..images import read_image
from ..prompts import Prompt
from .dataset import Row, encode, hash_pictures, load_coco, picture_names
from .protocol import Protocol, ask
from .results import Result

try:
    from faster_coco_eval import COCO, COCOeval_faster
except ImportError as e:
    raise MissingExtraError.of("faster_coco_eval", "eval") from e

__all__ = ["Detections", "average_precision"]

NAMES = ("AP", "AP50", "AP75", "AP S", "AP M", "AP L")


class Detections:
    """Boxes that a detector found: COCO's results format, a list of `image_id`, `category_id`, `bbox` and `score`.

    A mask keeps its box's class and score. That of a box without an area, or outside the picture, is empty.

    Args:
        detections: The JSON file.
        annotations: The COCO-format file that names the pictures.
        pictures: The folder that its `file_name`s are relative to.
        protocol: How the mask is chosen; only boxes are asked with.
        limit: Take the first pictures only.

    Raises:
        InvalidInputError: the file is not like that, or names a picture that is not there.
    """

    kind = "detections"

    def __init__(
        self,
        detections: str | PathLike[str],
        annotations: str | PathLike[str],
        pictures: str | PathLike[str],
        protocol: Protocol,
        limit: int | None = None,
    ) -> None:
        self.file, self.annotations, self.folder, self.protocol = Path(detections), Path(annotations), Path(pictures), protocol
        names = picture_names(load_coco(annotations), Path(annotations))
        self.found: dict[str, list[Row]] = {name: [] for name in list(names.values())[:limit]}
        try:
            for entry in json.loads(self.file.read_text(encoding="utf-8")):
                left, top, width, height = map(float, entry["bbox"])
                row: Row = {"image_id": entry["image_id"], "category_id": int(entry["category_id"])}
                row |= {"score": float(entry["score"]), "box": [left, top, left + width, top + height]}
                self.found.get(names[entry["image_id"]], []).append(row)
        except (OSError, OverflowError, ValueError, TypeError, KeyError) as e:
            raise InvalidInputError(
                f"{detections} holds no detections in these pictures ({e!r}): "
                "give a list of image_id, category_id, bbox and score."
            ) from e
        for picture in self.found:
            if not (self.folder / picture).is_file():
                raise InvalidInputError(f"{self.folder / picture}, which {annotations} names, is not there: give its folder.")

    def record(self) -> dict[str, Any]:
        """Return what a result says of the data."""
        digests = {"detections": str(self.file), "sha256": sha256(self.file), "annotations_sha256": sha256(self.annotations)}
        digests["pictures_sha256"] = hash_pictures(self.folder, self.found)
        return {**digests, "folder": str(self.folder), "pictures": len(self.found)}

    def pictures(self) -> list[str]:
        """Return the pictures' names, in the annotations' order."""
        return list(self.found)

    def measure(self, predictor: Any, picture: str) -> list[Row]:
        """Return a row for every detection in a picture."""
        if not self.found[picture]:
            return []
        image = read_image(self.folder / picture)
        predictor.set_image(image)
        rows = []
        for i, found in enumerate(self.found[picture]):
            mask, predicted = self._ask(predictor, Prompt(box=found["box"]), image.shape[:2])
            row = {"picture": picture, "id": i, "prompt": "box", **found, "predicted_iou": predicted}
            rows.append({**row, "size": list(mask.shape), "mask": encode(mask)})
        return rows

    def _ask(self, predictor: Any, prompt: Prompt, size: tuple[int, int]) -> tuple[NDArray[np.bool_], float]:
        """Return the mask for a box and its predicted IoU; an empty one, whatever the model, for a box that shows nothing."""
        try:
            prompt.check(size)
        except InvalidInputError:
            return np.zeros(size, dtype=bool), 0.0
        answer = ask(predictor, prompt, self.protocol.choice("box"))
        return answer.mask, answer.predicted


def average_precision(result: Result, annotations: str | PathLike[str]) -> dict[str, float]:
    """Return COCO's mask AP, AP50, AP75 and AP by size of a result of `Detections`, -1 where no annotation is of that size."""
    masks = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "score": row["score"],
            "segmentation": {"size": row["size"], "counts": row["mask"]},
        }
        for row in result.rows
    ]
    names = picture_names(load_coco(annotations), Path(annotations))  # in the order by which `Detections` takes the first ones
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval_faster(truth, truth.loadRes(masks), iouType="segm")
        evaluation.params.imgIds = list(names)[: result.data["pictures"]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats[:6]), strict=True))
