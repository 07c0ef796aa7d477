"""Images with labels in COCO format: the protocol of the paper's Table 2."""

import contextlib
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageReadError, InvalidInputError, MissingExtraError
from ..files import sha256
from ..images import exif_orientation, read_image
from ..inference.mask_predictor import MaskPredictor
from ..masks import Mask, box_baseline, decode_rle, decode_segmentation, encode_rle, mask_iou, tight_box
from ..prompts import Prompt
from .metrics import boundary_iou
from .protocol import Answer, Protocol, predict_mask, prompt_for, simulate_clicks

try:
    from pycocotools.coco import COCO
except ImportError as e:
    raise MissingExtraError.of("pycocotools", "eval") from e

__all__ = ["LabelledDataset", "Row", "decode", "encode", "hash_images", "load_coco", "measure", "read_labelled"]

logger = logging.getLogger(__name__)

# What a result records of one mask, as JSON.
Row = dict[str, Any]


class LabelledDataset:
    """A COCO-format annotation file and its images.

    Args:
        annotations: The file.
        images: The folder that each `file_name` is relative to.
        protocol: How to evaluate.
        limit: Only the first images.
        ignore_exif: Do not turn images upright by EXIF, because the labels are of the stored pixels.

    Raises:
        InvalidInputError: the file is not in COCO format, or an image is missing.
    """

    kind = "labelled"

    def __init__(
        self,
        annotations: str | PathLike[str],
        images: str | PathLike[str],
        protocol: Protocol,
        limit: int | None = None,
        ignore_exif: bool = False,
    ) -> None:
        self.file, self.folder, self.protocol = Path(annotations), Path(images), protocol
        self.ignore_exif = ignore_exif
        self.coco = load_coco(self.file)
        self.ids = {name: i for i, name in list(image_names(self.coco, self.file).items())[:limit]}
        for image in self.ids:
            if not (self.folder / image).is_file():
                raise InvalidInputError(f"{self.folder / image}, which {self.file} names, is not there: give its folder.")

    def record(self) -> dict[str, Any]:
        """Return what a result records of the data."""
        record: dict[str, Any] = {"annotations": str(self.file), "sha256": sha256(self.file), "folder": str(self.folder)}
        record |= {"images": len(self.ids), "images_sha256": hash_images(self.folder, self.ids)}
        return record | ({"ignore_exif": True} if self.ignore_exif else {})

    def images(self) -> list[str]:
        """Return the names of the images, in the file's order."""
        return list(self.ids)

    def measure(self, predictor: MaskPredictor, name: str) -> list[Row]:
        """Return a row per annotation and prompt of an image; none if the protocol leaves all out."""
        counted = self._counted(self.ids[name])
        if not counted:
            return []
        image = read_labelled(self.folder / name, self.ignore_exif)
        instances = self._instances(counted, name, (image.shape[0], image.shape[1]))
        if not instances:
            return []
        predictor.set_image(image)
        return [self._row(predictor, name, kind, a, mask) for kind in self.protocol.prompts for a, mask in instances]

    def _row(self, predictor: MaskPredictor, image: str, kind: str, annotation: dict[str, Any], truth: Mask) -> Row:
        box = annotation["box"] or [float(v) for v in tight_box(truth)]
        mask_selection = self.protocol.selection_for(kind)
        row = {"image": image, **{name: annotation[name] for name in ("id", "category", "area", "crowd")}}
        if kind.startswith("clicks-"):
            prompt, answers = simulate_clicks(predictor, truth, int(kind.removeprefix("clicks-")), mask_selection)
            row["ious"] = [mask_iou(answer.mask, truth) for answer in answers]
        else:
            prompt = prompt_for(kind, truth, box, (self.protocol.seed, annotation["id"]))
            answers = [predict_mask(predictor, prompt, mask_selection, truth)]
        return row | measure(kind, prompt, answers[-1], truth, box)

    def _counted(self, image_id: Any) -> list[dict[str, Any]]:
        found = [a for a in self.coco.imgToAnns[image_id] if a.get("segmentation")]
        return [a for a in found if self.protocol.crowds or not a.get("iscrowd", 0)]

    def _instances(self, counted: list[dict[str, Any]], image: str, size: tuple[int, int]) -> list[tuple[dict[str, Any], Mask]]:
        masks = []
        for a in counted:
            segmentation, entry = a["segmentation"], self.coco.imgs[a["image_id"]]
            rle = isinstance(segmentation, dict)
            declared = segmentation.get("size") if rle else [entry.get("height"), entry.get("width")]
            if declared != list(size):  # before a mask is allocated in a size that is wrong
                shown = " x ".join(map(str, reversed(declared))) if isinstance(declared, list) else declared
                raise InvalidInputError(
                    f"{image} has {size[1]} x {size[0]} pixels, its masks {shown}: "
                    "if EXIF data turn it, and the labels are of the stored pixels, give --ignore-exif (ignore_exif=True)."
                )
            try:
                mask = decode_segmentation(segmentation, size)
                masks.append((self._facts(a, mask), mask))
            except Exception as e:  # pycocotools raises whatever its C code trips over
                raise InvalidInputError(f"annotation {a['id']} of {self.file} has no readable mask ({e!r}): fix it.") from e
        return [(a, mask) for a, mask in masks if np.count_nonzero(mask) >= self.protocol.min_mask_area]

    def _facts(self, annotation: dict[str, Any], mask: Mask) -> dict[str, Any]:
        """Return what a row records of an annotation, and its box, x0, y0, x1, y1, or None if it has no area."""
        box = None
        if annotation.get("bbox"):
            left, top, width, height = map(float, annotation["bbox"])
            if not (width <= 0 or height <= 0):  # some of COCO's have none, and cannot be prompts
                box = [left, top, left + width, top + height]
        area = float(annotation.get("area", np.count_nonzero(mask)))
        if not np.isfinite([area, *(box or [])]).all():
            raise ValueError("area or bbox")
        if "random-point" in self.protocol.prompts:
            np.random.default_rng(annotation["id"])  # which draws the point
        category = self.coco.cats.get(annotation["category_id"], {}).get("name", str(annotation["category_id"]))
        crowd = bool(annotation.get("iscrowd", 0))
        return {"id": annotation["id"], "category": category, "area": area, "crowd": crowd, "box": box}


def read_labelled(path: Path, ignore_exif: bool = False) -> NDArray[np.uint8]:
    """Read an image with labels; warn if EXIF data turn it and keep its size, so that misplaced labels go unnoticed."""
    if not ignore_exif and exif_orientation(path) in (2, 3, 4):
        logger.warning(
            "%s is turned upright by its EXIF data. If its labels are of the stored pixels, the figures are wrong: give "
            "--ignore-exif (ignore_exif=True)",
            path,
        )
    return read_image(path, upright=not ignore_exif)


def measure(kind: str, prompt: Prompt, answer: Answer, truth: Mask, box: Any) -> Row:
    """Return the part of a row that all protocols share; `box` is the true box, x0, y0, x1, y1."""
    return {
        "prompt": kind,
        "given": prompt.record(),
        "iou": mask_iou(answer.mask, truth),
        "boundary_iou": boundary_iou(answer.mask, truth),
        "predicted_iou": answer.predicted_iou,
        "box_baseline_iou": mask_iou(box_baseline((truth.shape[0], truth.shape[1]), np.asarray(box)), truth),
        "size": list(truth.shape),
        "mask": encode(answer.mask),
        "truth": encode(truth),
    }


def encode(mask: Mask) -> str:
    """Return a mask as the `counts` of COCO's compressed RLE."""
    return encode_rle(mask)["counts"]


def decode(row: Row, which: str) -> Mask:
    """Return a row's "mask" or "truth", H x W."""
    return decode_rle({"size": row["size"], "counts": row[which]})


def hash_images(folder: Path, names: Iterable[str]) -> str:
    """Return the sha256 of images' names and contents, by which the same images are recognised."""
    try:
        digests = {name: sha256(folder / name) for name in names}
    except OSError as e:
        raise ImageReadError(f"an image in {folder} cannot be read ({e}): check its path and its permissions.") from e
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def load_coco(path: str | PathLike[str]) -> COCO:
    """Read an annotation file, without pycocotools' messages on stdout."""
    path = Path(path)
    try:
        dataset = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise InvalidInputError(f"{path} cannot be read as JSON ({e}): give a COCO-format annotation file.") from e
    if not isinstance(dataset, dict) or not {"images", "annotations"} <= dataset.keys():
        raise InvalidInputError(f"{path} has no 'images' and 'annotations': give a COCO-format annotation file.")
    coco = COCO()
    coco.dataset = dataset
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
    except (AttributeError, KeyError, TypeError) as e:
        raise InvalidInputError(f"{path} is not in COCO format ({e!r}): fix it.") from e
    if not coco.anns:
        raise InvalidInputError(f"{path} has no annotation: give a file with masks to compare with.")
    return coco


def image_names(coco: COCO, path: Path) -> dict[Any, str]:
    """Return the images' file names by their ids, in the file's order."""
    try:
        names = {i: coco.imgs[i]["file_name"] for i in coco.getImgIds()}
        if not all(isinstance(name, str) for name in names.values()):
            raise TypeError("file_name")
    except (KeyError, TypeError) as e:
        raise InvalidInputError(f"{path} has an image without a file_name ({e!r}): add it.") from e
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise InvalidInputError(f"{path} has {twice[0]} more than once: give each image one entry, with all its annotations.")
    return names
