"""Whether images still look like those that weights were adapted to: a distance in feature space, with a threshold.

A frame's features are pooled to about 16 x 16 places. The distance of a frame is the mean, over its places, of the distance to
the nearest of the places that are kept of the adaptation set. The threshold is what 95 % of that set's own frames stay under
when each is compared with the others, except for its neighbours.
"""

from collections import deque
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidInputError, WeightsError, WeightsNotFoundError
from ..files import checksum, write_beside
from ..preprocess import resized_size
from .predictor import Predictor

__all__ = ["DRIFT_FILE", "Drift", "DriftAlarm", "fit_drift"]

DRIFT_FILE = "drift.safetensors"
PLACES = 16  # that the long side of the grid is pooled to
KEPT = 4096  # places of the adaptation set
MIN_FRAMES = 8
QUANTILE = 0.95
WINDOW = 15  # frames, more than half of which have to be far


class Drift:
    """What is kept of an adaptation set.

    Args:
        mean: Of each feature, 256.
        deviation: Likewise.
        places: The features of places, normalised, N x 256.
        threshold: The distance beyond which a frame is unlike the set.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, places: Tensor, threshold: float) -> None:
        self.mean, self.deviation, self.places, self.threshold = mean, deviation, places, threshold

    def distance(self, features: Tensor) -> float:
        """Return the distance of a frame by its features, 1 x 256 x rows x columns, without padding."""
        return _distance((pooled(features) - self.mean) / self.deviation, self.places)

    def save(self, folder: str | PathLike[str], model_hash: str) -> Path:
        """Write it into a folder of weights, with the `model_hash` that the features belong to; return the path."""
        path = Path(folder) / DRIFT_FILE
        tensors = {"mean": self.mean, "deviation": self.deviation, "places": self.places.half()}
        tensors["threshold"] = torch.tensor(self.threshold)
        write_beside(path, lambda part: save_file(tensors, part, {"model_hash": model_hash, "crc32": checksum(tensors)}))
        return path

    @classmethod
    def load(cls, folder: str | PathLike[str], model_hash: str) -> "Drift":
        """Read what `save` wrote.

        Raises:
            WeightsNotFoundError: there is no such file.
            WeightsError: it is damaged, or belongs to another model.
        """
        path = Path(folder) / DRIFT_FILE
        if not path.is_file():
            raise WeightsNotFoundError(f"there is no {path}: give the weights' folder of a `groupmix-sam adapt` with 8 frames.")
        try:
            with safe_open(path, framework="pt") as f:
                metadata = f.metadata() or {}
                tensors = {name: f.get_tensor(name) for name in ("mean", "deviation", "places", "threshold")}
        except (OSError, SafetensorError) as e:
            raise WeightsError(f"{path} is not a whole safetensors file ({e}): copy it again.") from e
        if metadata.get("crc32") != checksum(tensors):
            raise WeightsError(f"{path} is damaged: copy it again.")
        if metadata.get("model_hash") != model_hash:
            raise WeightsError(f"{path} belongs to other weights than those that run: use --checkpoint {folder}, or an export.")
        return cls(tensors["mean"], tensors["deviation"], tensors["places"].float(), tensors["threshold"].item())


class DriftAlarm:
    """Says when the frames of a stream no longer look like the adaptation set: more than half of the last 15.

    Args:
        drift: What is kept of the set.
        predictor: Its embedding of each frame is looked at.
    """

    def __init__(self, drift: Drift, predictor: Predictor) -> None:
        self.drift, self.predictor = drift, predictor
        self.distances: deque[float] = deque(maxlen=WINDOW)
        self.is_on = False

    def update(self, frame: NDArray[np.uint8]) -> bool:
        """Take in the frame, H x W x 3, whose embedding the predictor has; return whether the alarm was turned on or off."""
        stride = self.predictor.model.embed_stride
        size = resized_size((frame.shape[0], frame.shape[1]), self.predictor.image_size)
        features = torch.from_numpy(self.predictor.get_image_embedding())[..., : size[0] // stride, : size[1] // stride]
        self.distances.append(self.drift.distance(features))
        before, self.is_on = self.is_on, len(self.distances) == WINDOW and self.distance > self.drift.threshold
        return before != self.is_on

    @property
    def distance(self) -> float:
        """The median of the last frames' distances."""
        return float(np.median(self.distances))

    def message(self) -> str:
        """Return a sentence on the alarm as it is now."""
        what = "frames no longer look" if self.is_on else "frames look again"
        advice = ": adapt again" if self.is_on else ""
        return f"{what} like those of the adaptation, distance {self.distance:.2f} of {self.drift.threshold:.2f}{advice}"


def fit_drift(frames: Sequence[Tensor], seed: int = 0) -> Drift:
    """Return what is kept of an adaptation set.

    Args:
        frames: The features of each frame in their order, 1 x 256 x rows x columns, without padding.
        seed: Of the places that are kept.

    Raises:
        InvalidInputError: there are fewer than 8 frames.
    """
    if len(frames) < MIN_FRAMES:
        raise InvalidInputError(f"there are {len(frames)} frames: give {MIN_FRAMES} or more for a threshold.")
    places = [pooled(features) for features in frames]
    together = torch.cat(places)
    mean, deviation = together.mean(0), together.std(0).clamp(min=1e-6)
    generator = torch.Generator().manual_seed(seed)
    share = max(1, KEPT // len(places))
    normalised = [(place - mean) / deviation for place in places]
    kept = [place[torch.randperm(len(place), generator=generator)[:share]] for place in normalised]
    near = len(places) // 10  # neighbours of a line's frame show nearly the same
    distances = [
        _distance(place, torch.cat([*kept[: max(0, i - near)], *kept[i + near + 1 :]])) for i, place in enumerate(normalised)
    ]
    return Drift(mean, deviation, torch.cat(kept), float(np.quantile(distances, QUANTILE)))


def pooled(features: Tensor) -> Tensor:
    """Return a frame's features, 1 x 256 x rows x columns, at about 16 places of its long side, N x 256."""
    size = max(1, max(features.shape[-2:]) // PLACES)
    return F.avg_pool2d(features, size, ceil_mode=True)[0].flatten(1).T


def _distance(places: Tensor, kept: Tensor) -> float:
    return float(torch.cdist(places, kept).amin(1).mean()) / places.shape[1] ** 0.5
