"""Masks that visitors save as labels: images and a COCO file in a folder, as `groupmix-sam adapt --labels` takes them."""

import hashlib
import json
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..annotations import AnnotatedImage, Instance, from_coco, to_coco
from ..errors import InvalidInputError
from ..files import make_folder, write_beside
from ..masks import Mask, mask_iou

__all__ = ["Labels"]

# IoU from which a mask is of the instance of an earlier label, and replaces it.
SAME = 0.8


class Labels:
    """Labels in a folder: `images/`, and `annotations.json` with their masks. What an earlier page saved is kept.

    Args:
        folder: The folder; it is made if need be.

    Raises:
        InvalidInputError: its annotations cannot be read.
        SaveError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images_folder, self.file = folder / "images", folder / "annotations.json"
        make_folder(self.images_folder)
        self._images: dict[Path, AnnotatedImage] = {}
        self._lock = Lock()
        if self.file.is_file():
            try:
                content = json.loads(self.file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as e:
                raise InvalidInputError(f"{self.file} cannot be read as JSON ({e}): fix it, or give another --labels.") from e
            self._images = {entry.path: entry for entry in from_coco(content, folder)}

    def count(self, image: NDArray[np.uint8] | None = None) -> tuple[int, int]:
        """Return how many labels there are, or an image's, and of how many images."""
        with self._lock:
            path = None if image is None else self._find(image)
            entries = [entry for known, entry in self._images.items() if entry.instances and (image is None or known == path)]
        return sum(len(entry.instances) for entry in entries), len(entries)

    def save(self, image: NDArray[np.uint8], mask: Mask) -> None:
        """Save a mask as a label. It replaces an earlier one of the same instance, whose IoU with it is 0.8 or more.

        Args:
            image: H x W x 3, RGB. It is written once, as PNG; images are numbered in the order in which they come.
            mask: H x W of bool.

        Raises:
            InvalidInputError: the mask is empty.
            SaveError: something cannot be written; what was saved before is kept.
        """
        if not mask.any():
            raise InvalidInputError("the mask is empty: click on what you want first.")
        with self._lock:
            path = self._find(image)
            if path is None:
                numbers = [int(file.name.partition("-")[0]) for file in self.images_folder.glob("[0-9]*-*.png")]
                path = self.images_folder / f"{max(numbers, default=0) + 1:04d}-{_digest(image)}.png"
                write_beside(path, lambda part: Image.fromarray(image).save(part, "PNG"))
            known = self._images[path].instances if path in self._images else []
            kept = [instance for instance in known if mask_iou(instance.mask, mask) < SAME]
            entry = AnnotatedImage(path, (image.shape[0], image.shape[1]), [*kept, Instance(mask)])
            self._write(self._images | {path: entry})

    def remove(self, image: NDArray[np.uint8]) -> None:
        """Remove an image's labels; the image's file stays."""
        with self._lock:
            path = self._find(image)
            self._write({known: entry for known, entry in self._images.items() if known != path})

    def _find(self, image: NDArray[np.uint8]) -> Path | None:
        return next(iter(self.images_folder.glob(f"*-{_digest(image)}.png")), None)

    def _write(self, images: dict[Path, AnnotatedImage]) -> None:
        text = json.dumps(to_coco(images.values(), self.folder)) + "\n"
        write_beside(self.file, lambda part: part.write_text(text, encoding="utf-8"))
        self._images = images


def _digest(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()[:12]
