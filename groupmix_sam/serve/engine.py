"""What a server does: it keeps images' embeddings, and works on one request at a time, while a bounded number waits."""

import asyncio
import math
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ..annotations.types import Instance
from ..errors import BusyError, InvalidInputError, NoImageError
from ..images import decode_image
from ..inference import Predictor
from ..inference.automatic import everything
from ..inference.backends import TorchBackend
from ..prompts import Prompt, stack_prompts

__all__ = ["MAX_PIXELS", "Engine", "Kept", "Limits"]

# 6000 x 4000: time and memory of a request grow with the image.
MAX_PIXELS = 25_000_000
# Of a client that is told when to come back.
MAX_RETRY_SECONDS = 60

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        images: Images whose embeddings are kept, 15 MB each; the one that was used longest ago goes first.
        queue: Requests that wait while one is computed.
        megabytes: Size of an image file.
        rate: Requests per second from one address, on average and at once.
        timeout: Seconds for a request, from its first byte to the last one of the answer.

    Raises:
        InvalidInputError: a value is out of range.
    """

    images: int = 32
    queue: int = 16
    megabytes: float = 40
    rate: float = 100
    timeout: float = 60

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("queue", 0), ("megabytes", 0.001), ("rate", 1), ("timeout", 0.1)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise InvalidInputError(f"{name} is {value}: give {least} or more.")

    @property
    def max_bytes(self) -> int:
        return int(1e6 * self.megabytes)


class Kept(NamedTuple):
    """A predictor that has seen one image, and the image's height and width."""

    predictor: Predictor
    size: tuple[int, int]


class Engine:
    """A model and the images that clients asked about.

    All work of the model runs in one thread: two requests at once would take each other's cores. Methods are called from one
    event loop, those that say so from within `run`.

    Args:
        predictor: The model, in any runtime.
        limits: What is taken.
        root: The only folder of which image files are read; None for no files at all.
    """

    def __init__(self, predictor: Predictor, limits: Limits | None = None, root: Path | None = None) -> None:
        self.limits = limits or Limits()
        self.root = None if root is None else root.resolve()
        if self.root is not None and not self.root.is_dir():
            raise InvalidInputError(f"there is no folder {root}: give the folder that has the images.")
        self.waiting = 0
        self.evictions = 0
        self._model = predictor.model
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = Lock()
        self._worker = ThreadPoolExecutor(1, "groupmix-sam")
        self._began: float | None = None
        self._seconds = 1.0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def working_for(self) -> float:
        """Seconds since the work at hand began; 0 if there is none."""
        began = self._began
        return 0.0 if began is None else perf_counter() - began

    def close(self) -> None:
        """End the thread once its work is done; what waits is dropped."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the queue, from before a body is read: bodies fill the memory.

        Raises:
            BusyError: all places are taken.
        """
        if self.waiting > self.limits.queue:
            seconds = min(MAX_RETRY_SECONDS, max(1, math.ceil(self.waiting * self._seconds)))
            raise BusyError(f"{self.waiting} requests are waiting: come back in {seconds} s.", seconds)
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Run work in the one thread, when its turn comes; cancelled before, it never runs."""
        return await asyncio.wrap_future(self._worker.submit(self._timed, work))

    def _timed(self, work: Callable[[], T]) -> T:
        self._began = start = perf_counter()
        try:
            return work()
        finally:
            self._began = None
            self._seconds += 0.1 * (perf_counter() - start - self._seconds)

    def add(self, data: bytes, name: str) -> tuple[str, tuple[int, int]]:
        """Encode an image file's bytes, within `run`; return the image's id, and its height and width.

        Raises:
            ImageReadError: it is no image, is damaged, or has too many pixels.
            InvalidInputError: it is too narrow.
        """
        image = decode_image(data, name, max_pixels=MAX_PIXELS)
        predictor = Predictor(self._model)  # it shares the weights and keeps this image's embedding
        predictor.set_image(image)
        key, size = secrets.token_hex(16), (image.shape[0], image.shape[1])
        with self._lock:
            self._kept[key] = Kept(predictor, size)
            while len(self._kept) > self.limits.images:
                self._kept.popitem(last=False)
                self.evictions += 1
        return key, size

    def read(self, name: str) -> bytes:
        """Return the bytes of a file below the root, within `run`. Links are followed as long as they stay below it.

        Raises:
            NoImageError: there is no such file there; what is elsewhere is not told apart from what is nowhere.
            InvalidInputError: there is no root, or the file is too large.
        """
        if self.root is None:
            raise InvalidInputError("this server reads no files: send the image itself, or start it with --root.")

        def open_regular(path: str, flags: int) -> int:
            # What became a link or a pipe after the check is refused, and waited for by nobody.
            return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))

        try:
            path = (self.root / name).resolve(strict=True)
            if not path.is_relative_to(self.root) or not path.is_file():
                raise FileNotFoundError(name)
            with open(path, "rb", opener=open_regular) as file:
                data = file.read(self.limits.max_bytes + 1)
        except (OSError, RuntimeError, ValueError) as e:  # links in a circle; a name that no file can have
            raise NoImageError(f"there is no file {name!a:.200} below the server's root: give its path from there.") from e
        if len(data) > self.limits.max_bytes:
            raise InvalidInputError(f"{name!a:.200} has more than {self.limits.megabytes:g} MB: scale it down first.")
        return data

    def find(self, key: str) -> Kept:
        """Return an image by its id.

        Raises:
            NoImageError: it never was, or others took its place.
        """
        with self._lock:
            if key not in self._kept:
                raise NoImageError(f"there is no image {key!a:.80}, or newer ones took its place: send it again.")
            self._kept.move_to_end(key)
            return self._kept[key]

    def remove(self, key: str) -> None:
        """Forget an image.

        Raises:
            NoImageError: as for `find`.
        """
        with self._lock:
            if self._kept.pop(key, None) is None:
                raise NoImageError(f"there is no image {key!a:.80}: it may be gone already.")

    @staticmethod
    def segment(kept: Kept, prompts: Sequence[Prompt]) -> list[Instance]:
        """Return an instance for each prompt, as `groupmix_sam.inference.segment` does, within `run`.

        Raises:
            InvalidInputError: a prompt is outside the image.
        """
        for prompt in prompts:
            prompt.check(kept.size)
        instances = []
        for prompt in prompts:  # one by one: a mask has the image's size
            masks, scores = kept.predictor.predict_single_mask(*stack_prompts([prompt]))
            instances.append(Instance(masks[0], float(scores[0]), prompt.category or "object", replace(prompt, category=None)))
        return instances

    @staticmethod
    def everything(kept: Kept, settings: dict[str, Any]) -> list[Instance]:
        """Return what `groupmix_sam.inference.everything` finds in an image, whose pixels are gone, within `run`.

        Raises:
            InvalidInputError: a setting cannot be used.
        """
        model, features = kept.predictor.model, torch.from_numpy(kept.predictor.get_image_embedding())
        model = replace(model, encoder=TorchBackend(lambda _: features, model.device))  # of an image of that size, this one's
        return everything(Predictor(model), np.zeros((*kept.size, 3), dtype=np.uint8), **settings)
