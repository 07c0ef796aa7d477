"""What the demo page does, apart from how it looks: an image, clicks on it, and the masks that models give for them."""

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

__all__ = ["MAX_PIXELS", "REFERENCE", "Answer", "Click", "Demo", "Session", "load_named"]

# What a session keeps and computes grows with the image: this is that of a camera of 6000 x 4000, with some to spare.
MAX_PIXELS = 25_000_000
# Longest side in pixels of what the page shows and sends again after each click, of small images too: gradio tells where
# a click was only in images that the browser does not enlarge.
SHOWN_SIDE = 1024
REFERENCE = "MobileSAM"
MakePredictor = Callable[[], MaskPredictor]
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class Click:
    """Where somebody clicked, in the image's pixels.

    Attributes:
        kind: "foreground", "background" or "corner", two of which make a box.
    """

    x: float
    y: float
    kind: str = "foreground"


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's masks of one prompt, 3 x H x W of bool, their predicted IoUs, and the seconds that the decoder took."""

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True, eq=False)
class Embedding:
    """A predictor whose image is set, and the seconds that its encoder took."""

    predictor: MaskPredictor
    seconds: float


@dataclass(frozen=True, eq=False)
class Session:
    """All that the page knows of one visitor. It is never changed: what happens makes another one.

    Attributes:
        image: H x W x 3, RGB; None before there is one.
        shown: The same at the size that the page shows it at.
        clicks: All of them, in their order.
        embeddings: By the model's name.
        answers: To these clicks, by the model's name.
        model: The name of the model whose masks are shown.
        chosen: Which of its three masks, counted from 0.
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
            InvalidInputError: an unknown kind, or a box without an area.
        """
        if self.image is None:
            raise NoImageError("there is no image to click on, or it was forgotten meanwhile: give it again.")
        if kind not in ("foreground", "background", "corner"):
            raise InvalidInputError(f"the click is of kind {kind!r}: use 'foreground', 'background' or 'corner'.")
        height, width = self.image.shape[:2]
        # The middle of a pixel there is the middle of what it shows here; a border pixel's may lie outside.
        x, y = np.clip((np.array([x, y]) + 0.5) / self._scale() - 0.5, 0, [width - 1, height - 1]).tolist()
        session = self._with_clicks((*self.clicks, Click(x, y, kind)))
        session.prompt()  # refuses what makes none
        return session

    def undo(self) -> "Session":
        """Take the last click back."""
        return self._with_clicks(self.clicks[:-1])

    def clear(self) -> "Session":
        """Take all clicks back."""
        return self._with_clicks(())

    def choose(self, number: int) -> "Session":
        """Choose one of the three masks, counted from 0."""
        return replace(self, chosen=number)

    @property
    def answer(self) -> Answer | None:
        return self.answers.get(self.model)

    @property
    def corner(self) -> Click | None:
        """The first corner of a box that has no second one yet."""
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
        """Return the chosen mask, or that of the same number which another model gives."""
        answer = self.answers.get(self.model if model is None else model)
        return None if answer is None else answer.masks[self.chosen]

    def agreement(self) -> float | None:
        """Return the IoU of the chosen mask and the reference's of the same number."""
        mask, other = self.mask(), self.mask(REFERENCE)
        return None if mask is None or other is None else mask_iou(mask, other)

    def draw(self, model: str | None = None, *, full: bool = False) -> Image.Image | None:
        """Return the image with the mask and the clicks drawn, as large as `shown` or in full."""
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
        """Return how much wider and higher `shown` is than the image."""
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
    """

    def __init__(self, models: Mapping[str, MakePredictor], reference: MakePredictor | None = None) -> None:
        self.models = tuple(models)
        self.has_reference = reference is not None
        self._make = dict(models)
        if reference is not None:
            self._make[REFERENCE] = reference
        # One thread at a time runs a model: two would take each other's cores.
        self._locks = {name: Lock() for name in self._make}

    def open(self, path: Path) -> Session:
        """Return a session with an image file, whose name is all of the path that an error says.

        Raises:
            ImageReadError: it is not there, no image, damaged or too large.
        """
        try:
            data = path.read_bytes()
        except OSError as e:
            raise ImageReadError(f"{path.name} cannot be read ({e.strerror}): check the path and its permissions.") from e
        return Session.of(decode_image(data, path.name, max_pixels=MAX_PIXELS))

    def predict(self, session: Session, model: str, compare: bool) -> Session:
        """Return the session with what it lacks: the image's embedding and masks for its clicks.

        The mask that the model gives the highest score is chosen.

        Args:
            session: Whose.
            model: One of `models`.
            compare: Whether the reference is asked as well.
        """
        if model not in self.models:
            raise UnknownNameError.near("model", model, self.models)
        if session.image is None:
            return replace(session, model=model)
        embeddings, answers = dict(session.embeddings), dict(session.answers)
        prompt = session.prompt()
        for name in (model, REFERENCE) if compare and self.has_reference else (model,):
            if name not in embeddings:
                embeddings[name] = self._embed(name, session.image)
            if prompt and name not in answers:
                answers[name] = self._answer(name, embeddings[name].predictor, prompt)
        same = model == session.model and model in session.answers
        chosen = session.chosen if same or not prompt else int(answers[model].scores.argmax())
        return replace(session, embeddings=embeddings, answers=answers, model=model, chosen=chosen)

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


def load_named(checkpoint: str, *, encoder: str | None = None, image_size: int | None = None) -> tuple[str, Predictor]:
    """Return a model, as `Predictor.from_pretrained` takes it, after the name that the page shows."""
    runtime, precision = "PyTorch", "fp32"
    if is_exported(checkpoint):
        config = read_config(Path(checkpoint))
        runtime, precision = RUNTIMES[config["runtime"]], config["precision"]
        encoder = image_size = None  # they are of the weights beside it
    predictor = Predictor.from_pretrained(checkpoint, encoder=encoder, image_size=image_size)
    return f"{checkpoint}: {runtime} {precision}, {predictor.image_size} px", predictor


def _draw_corner(image: Image.Image, x: float, y: float) -> None:
    """Draw a cross, white on black, that the box may open to any side."""
    draw, size = ImageDraw.Draw(image), max(image.size) / 50
    for color, width in ((0, 0, 0), 6), ((255, 255, 255), 2):
        draw.line((x - size, y, x + size, y), fill=color, width=width)
        draw.line((x, y - size, x, y + size), fill=color, width=width)
