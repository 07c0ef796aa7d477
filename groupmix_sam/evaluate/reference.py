"""Images without labels: the IoU of a model's masks with a reference's, the protocol of the paper's Table 3."""

import hashlib
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..files import make_folder, sha256, write_beside
from ..images import find_images, read_image
from ..inference.mask_predictor import MaskPredictor
from ..masks import Mask, decode_rle, encode_rle, tight_box
from ..prompts import EVERY, Prompt, read_prompts
from .dataset import Row, hash_images, measure
from .models import Model
from .protocol import Protocol, predict_mask

__all__ = ["ReferenceDataset"]


class ReferenceDataset:
    """A folder of images, prompts, and the reference model, whose masks are the truth.

    The mask is chosen alike for both models, see `Protocol.selection_for`. Where an oracle chooses, the reference's mask is the
    best of three by predicted IoU.

    Args:
        images: The folder.
        protocol: How to evaluate; its prompts are not used.
        reference: The reference model.
        prompts: A CSV or JSON file, see `read_prompts`; or n, for a grid of n x n points.
        confidence: With a grid: drop points with a lower predicted IoU by the reference.
        limit: Only the first images.
        truths: Folder to keep the reference's masks in, so that it runs once for any number of models. Masks of a model without
            `sha256` are not kept.

    Raises:
        InvalidInputError: the prompts cannot be read, or name an image that is missing.
    """

    kind = "reference"

    def __init__(
        self,
        images: str | PathLike[str],
        protocol: Protocol,
        reference: Model,
        prompts: str | PathLike[str] | int,
        confidence: float = 0.88,
        limit: int | None = None,
        truths: str | PathLike[str] | None = None,
    ) -> None:
        self.folder, self.protocol, self.reference = Path(images), protocol, reference
        self.kept = None if truths is None else Path(truths)
        self.points_per_side = prompts if isinstance(prompts, int) else None
        self.confidence = confidence
        if self.points_per_side is not None:
            if self.points_per_side < 1:
                raise InvalidInputError(f"points_per_side is {self.points_per_side}: give 1 or more.")
            found = find_images(self.folder)
            packed = [image for image in found if image.name]
            if packed:
                raise InvalidInputError(f"{packed[0]} lies in a tar: unpack it, results name images by their path.")
            names = [image.path.relative_to(self.folder).as_posix() for image in found]
            self._record: dict[str, Any] = {"points_per_side": self.points_per_side, "confidence": confidence}
        else:
            file = Path(prompts)  # type: ignore[arg-type]  # an int is a grid
            self.prompts = read_prompts(file)
            names = list(self.prompts)
            if EVERY in self.prompts:
                raise InvalidInputError(f"{file} has prompts for no image: give a list, each with its image.")
            self._record = {"prompts": str(file), "sha256": sha256(file)}
            for name in names:
                if not (self.folder / name).is_file():
                    raise InvalidInputError(f"{self.folder / name}, which {file} names, is not there: give its folder.")
        self.names = names[:limit]

    def record(self) -> dict[str, Any]:
        """Return what a result records of the data and the reference."""
        images = {"images": len(self.names), "images_sha256": hash_images(self.folder, self.names)}
        return {**self._record, "folder": str(self.folder), **images, "reference": self.reference.record()}

    def images(self) -> list[str]:
        """Return the names of the images: sorted with a grid, else in the prompts' order."""
        return self.names

    def measure(self, predictor: MaskPredictor, name: str) -> list[Row]:
        """Return a row per prompt of an image for which the reference has a mask."""
        image = read_image(self.folder / name)
        size = (image.shape[0], image.shape[1])
        prompts = self.prompts[name] if self.points_per_side is None else _grid(size, self.points_per_side)
        for prompt in prompts:
            try:
                prompt.check(size)
            except InvalidInputError as e:
                raise InvalidInputError(f"{name}: {e}") from e
        truths = self._truths(name, image, prompts)
        if not truths:
            return []
        predictor.set_image(image)
        rows = []
        for i, truth in truths.items():
            prompt, area = prompts[i], int(np.count_nonzero(truth))
            answer = predict_mask(predictor, prompt, self.protocol.selection_for(prompt.kind), truth)
            row = {"image": name, "id": i, "area": float(area)}
            rows.append(row | measure(prompt.kind, prompt, answer, truth, prompt.box or tight_box(truth)))
        return rows

    def _truths(self, name: str, image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> dict[int, Mask]:
        """Return the reference's masks by the numbers of their prompts: kept ones, or new ones."""
        if self.kept is None or self.reference.sha256 is None:  # without a hash, kept masks may be another model's
            return self._ask(image, prompts)
        # All that a mask depends on, which the folder's name and the other images are not.
        key = [self.reference.record(), self._record.get("confidence"), sha256(self.folder / name)]
        key += [
            self.protocol.mask_selection,
            self.protocol.min_mask_area,
            self.protocol.resize,
            [prompt.record() for prompt in prompts],
        ]
        file = self.kept / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
        try:
            return {int(i): decode_rle(rle) for i, rle in json.loads(file.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, AttributeError):  # missing or damaged
            truths = self._ask(image, prompts)
        content = json.dumps({i: encode_rle(mask) for i, mask in truths.items()})
        make_folder(self.kept)
        write_beside(file, lambda part: part.write_text(content, encoding="utf-8"))
        return truths

    def _ask(self, image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> dict[int, Mask]:
        self.reference.predictor.set_image(image)
        truths = {}
        for i, prompt in enumerate(prompts):
            mask_selection = self.protocol.selection_for(prompt.kind)
            truth = predict_mask(
                self.reference.predictor, prompt, "best-of-3" if mask_selection == "oracle" else mask_selection
            )
            sure = self.points_per_side is None or truth.predicted_iou >= self.confidence
            if sure and np.count_nonzero(truth.mask) >= max(self.protocol.min_mask_area, 1):
                truths[i] = truth.mask
        return truths


def _grid(size: tuple[int, int], side: int) -> list[Prompt]:
    """Return points at the centres of side x side equal cells, row by row."""
    ys, xs = ((np.arange(side) + 0.5) * length / side for length in size)
    return [Prompt([[float(x), float(y)]], [1]) for y in ys for x in xs]
