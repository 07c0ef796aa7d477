"""The logic of the demo page: an image, clicks on it, and the masks that models predict for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import ImageReadError, InvalidInputError, NoImageError, UnknownNameError
from ..images import decode_image
from ..inference import MaskPredictor, Predictor
from ..inference.exported_folder import read_config
from ..masks import mask_iou
from ..prompts import Prompt
from ..visualize import draw_masks
from ..weights import is_exported

__all__ = ["MAX_PIXELS", "NOTHING", "REFERENCE", "Answer", "Click", "Demo", "Session", "load_named"]

# A session's memory and time grow with the image. This allows 6000 x 4000.
MAX_PIXELS = 25_000_000
# Longest side in pixels of the image that the page shows and sends after each click. Small images are enlarged to it, as gradio
# gives right positions of clicks only where the browser does not enlarge the image.
SHOWN_SIDE = 1024
REFERENCE = "MobileSAM"
NOTHING = ("nothing", "")  # to compare with: what the page shows, and its value
MakePredictor = Callable[[], MaskPredictor]
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class Click:
    """A click, in the image's pixels.

    Attributes:
        kind: "foreground", "background" or "corner". Two corners make a box.
    """

    x: float
    y: float
    kind: str = "foreground"


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's masks for a prompt, 3 x H x W of bool, their predicted IoUs, 3, and the decoder's seconds."""

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True, eq=False)
class Embedding:
    """A predictor whose image is set, and the encoder's seconds."""

    predictor: MaskPredictor
    seconds: float


@dataclass(frozen=True, eq=False)
class Session:
    """The state of one visitor. It is immutable: each action returns a new one.

    Attributes:
        image: H x W x 3, RGB; None at first.
        shown: The image at the size that the page shows.
        clicks: In their order.
        embeddings: By the name of the model.
        answers: The masks for these clicks, by the name of the model.
        model: The name of the model whose masks are shown.
        chosen: The number of the chosen mask, from 0 to 2.
    """

    image: NDArray[np.uint8] | None = None
    shown: NDArray[np.uint8] | None = None
    clicks: tuple[Click, ...] = ()
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    model: str = ""
    chosen: int = 0

    @classmethod
    def of(cls, image: NDArray[np.uint8]) -> "Session":
        """Return a session with an image."""
        size = [max(1, round(side * SHOWN_SIDE / max(image.shape[:2]))) for side in image.shape[1::-1]]
        return cls(image, np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)))

    def click(self, x: float, y: float, kind: str) -> "Session":
        """Add a click, in pixels of `shown`.

        Raises:
            NoImageError: there is no image.
            InvalidInputError: the kind is unknown, or the box has no area.
        """
        if self.image is None:
            raise NoImageError("there is no image, or the session has expired: give it again.")
        if kind not in ("foreground", "background", "corner"):
            raise InvalidInputError(f"the click is of kind {kind!r}: use 'foreground', 'background' or 'corner'.")
        height, width = self.image.shape[:2]
        # The centre of a shown pixel is the centre of what it shows; that of a border pixel may lie outside.
        x, y = np.clip((np.array([x, y]) + 0.5) / self._scale() - 0.5, 0, [width - 1, height - 1]).tolist()
        session = self._with_clicks((*self.clicks, Click(x, y, kind)))
        session.prompt()  # refuses a box without an area
        return session

    def undo(self) -> "Session":
        """Remove the last click."""
        return self._with_clicks(self.clicks[:-1])

    def clear(self) -> "Session":
        """Remove all clicks."""
        return self._with_clicks(())

    def choose(self, number: int) -> "Session":
        """Choose one of the three masks, from 0."""
        return replace(self, chosen=number)

    @property
    def answer(self) -> Answer | None:
        return self.answers.get(self.model)

    @property
    def corner(self) -> Click | None:
        """The first corner of a box whose second is missing."""
        corners = self._corners()
        return corners[-1] if len(corners) % 2 else None

    def prompt(self) -> Prompt | None:
        """Return the points and the newest box; None if there is neither."""
        assert self.image is not None
        points = [click for click in self.clicks if click.kind != "corner"]
        corners, box = self._corners(), None
        if corners and not self.corner:
            (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(*((c.x, c.y) for c in corners[-2:]), strict=True))
            box = [x0, y0, x1, y1]
        if not points and box is None:
            return None
        prompt = Prompt([[click.x, click.y] for click in points], [int(click.kind == "foreground") for click in points], box)
        prompt.check((self.image.shape[0], self.image.shape[1]))
        return prompt

    def mask(self, model: str | None = None) -> NDArray[np.bool_] | None:
        """Return the chosen mask; or another model's: its best where the best is chosen, else the one of the same number."""
        answer, shown = self.answers.get(self.model if model is None else model), self.answer
        if answer is None:
            return None
        best = shown is not None and self.chosen == shown.scores.argmax()
        return answer.masks[answer.scores.argmax() if best else self.chosen]

    def compared_iou(self, model: str) -> float | None:
        """Return the IoU of the chosen mask with another model's."""
        mask, other = self.mask(), self.mask(model)
        return None if mask is None or other is None else mask_iou(mask, other)

    def draw(self, model: str | None = None, *, full: bool = False) -> Image.Image | None:
        """Return the image with the mask and the clicks, at the size of `shown` or in full size."""
        image = self.image if full else self.shown
        if image is None:
            return None
        scale = np.ones(2) if full else self._scale()
        mask = self.mask(model)
        size = image.shape[1], image.shape[0]
        masks = [] if mask is None else [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))]
        coords, labels, box = (self.prompt() or Prompt()).arrays().values()
        drawn = draw_masks(
            image,
            masks,
            points=None if coords is None else (coords + 0.5) * scale - 0.5,
            labels=labels,
            box=None if box is None else (box + 0.5) * np.tile(scale, 2) - 0.5,
        )
        if self.corner:
            _draw_corner(drawn, *(np.array([self.corner.x, self.corner.y]) + 0.5) * scale - 0.5)
        return drawn

    def _scale(self) -> NDArray[np.float64]:
        """Return the ratios of width and height of `shown` to the image."""
        assert self.image is not None
        assert self.shown is not None
        return np.array(self.shown.shape[1::-1]) / self.image.shape[1::-1]

    def _corners(self) -> list[Click]:
        return [click for click in self.clicks if click.kind == "corner"]

    def _with_clicks(self, clicks: tuple[Click, ...]) -> "Session":
        return replace(self, clicks=clicks, answers={})


class Demo:
    """Models that sessions share.

    Args:
        models: By the name that the page shows, each a function that returns a new predictor. Predictors of one model share its
            weights; each keeps the embedding of one visitor's image.
        reference: Likewise, MobileSAM, to compare their masks with.

    Attributes:
        models: Their names.
    """

    def __init__(self, models: Mapping[str, MakePredictor], reference: MakePredictor | None = None) -> None:
        self.models = tuple(models)
        self._make = dict(models)
        if reference is not None:
            self._make[REFERENCE] = reference
        # One thread at a time runs a model: two would take each other's cores.
        self._locks = {name: Lock() for name in self._make}

    @property
    def compared(self) -> tuple[str, ...]:
        """The names that masks can be compared with."""
        return tuple(self._make)

    def add(self, name: str, make: MakePredictor) -> None:
        """Add a model."""
        self._make[name], self._locks[name] = make, Lock()
        self.models = (*self.models, name)

    def open(self, path: Path) -> Session:
        """Return a session with an image file. Errors name the file without its folder.

        Raises:
            ImageReadError: it does not exist, is no image, is damaged or too large.
        """
        try:
            data = path.read_bytes()
        except OSError as e:
            raise ImageReadError(f"{path.name} cannot be read ({e.strerror}): check the path and its permissions.") from e
        return Session.of(decode_image(data, path.name, max_pixels=MAX_PIXELS))

    def predict(self, session: Session, model: str, compare: str | None = None) -> Session:
        """Return the session with its image's embedding and the masks for its clicks, computed where they are missing.

        The mask of the highest predicted IoU is chosen.

        Args:
            session: The visitor's.
            model: One of `models`.
            compare: One of `compared`, to predict with it too.
        """
        if model not in self.models:
            raise UnknownNameError.near("model", model, self.models)
        if compare is not None and compare not in self._make:
            raise UnknownNameError.near("model", compare, self.compared)
        if session.image is None:
            return replace(session, model=model)
        embeddings, answers = dict(session.embeddings), dict(session.answers)
        prompt = session.prompt()
        for name in dict.fromkeys((model, compare or model)):
            if name not in embeddings:
                embeddings[name] = self._embed(name, session.image)
            if prompt and name not in answers:
                answers[name] = self._answer(name, embeddings[name].predictor, prompt)
        same = model == session.model and model in session.answers
        chosen = session.chosen if same or not prompt else int(answers[model].scores.argmax())
        return replace(session, embeddings=embeddings, answers=answers, model=model, chosen=chosen)

    def predictor(self, model: str) -> MaskPredictor:
        """Return a new predictor of one of `models`."""
        return self._make[model]()

    def lock(self, model: str) -> Lock:
        """Return what to hold while one of `models` runs."""
        return self._locks[model]

    def _embed(self, name: str, image: NDArray[np.uint8]) -> Embedding:
        predictor = self._make[name]()
        with self._locks[name]:
            start = perf_counter()
            predictor.set_image(image)
            return Embedding(predictor, perf_counter() - start)

    def _answer(self, name: str, predictor: MaskPredictor, prompt: Prompt) -> Answer:
        with self._locks[name]:
            start = perf_counter()
            masks, scores, _ = predictor.predict(**prompt.arrays())
            return Answer(masks, scores, perf_counter() - start)


def load_named(
    checkpoint: str,
    *,
    encoder: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> tuple[str, Predictor]:
    """Return the name that the page shows of a model, and its predictor; arguments as for `Predictor.from_pretrained`."""
    runtime, precision = "PyTorch", "fp32"
    if is_exported(checkpoint):
        config = read_config(Path(checkpoint))
        runtime, precision = RUNTIMES[config["runtime"]], config["precision"]
        encoder = image_size = None  # those are for weights, which the page may show beside it
    predictor = Predictor.from_pretrained(checkpoint, encoder=encoder, image_size=image_size, device=device, threads=threads)
    return f"{checkpoint}: {runtime} {precision}, {predictor.image_size} px", predictor


def _draw_corner(image: Image.Image, x: float, y: float) -> None:
    """Draw a cross, white on black: the box may open to any side."""
    draw, size = ImageDraw.Draw(image), max(image.size) / 50
    for color, width in ((0, 0, 0), 6), ((255, 255, 255), 2):
        draw.line((x - size, y, x + size, y), fill=color, width=width)
        draw.line((x, y - size, x, y + size), fill=color, width=width)
