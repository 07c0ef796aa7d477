"""What the decoder stage learns from people's masks: prompts as users give them, and the starting model's masks beside.

An instance is asked for by a box, by a single point, by both or by several points. A single point teaches whichever of the
three masks is nearest, and the predicted IoUs which of them was meant. Some samples are replay: the starting model's own masks,
on other images and on the same ones outside of the labels, so that what was known is kept. Unlabelled frames of the line are
left out of it: they show what the labels are to change.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..annotations import Instance
from ..annotations.reader import Matched, some
from ..encoders.config import STRIDE
from ..errors import ImageReadError, InvalidInputError
from ..files import make_folder
from ..images import ImageFile, evenly_spaced
from ..masks import encode_rle
from ..preprocess import check_aspect, resized_size
from .cache import is_whole, write_tensors
from .data import Grid, as_input, draw_order, resized
from .decoder import Decoder, FrozenDecoder
from .decoder_stage import CHECK_IMAGES, ORDER, Asker, Prompts, Sample, ask, move_boxes, points_in, select
from .losses import mask_ious
from .recipe import DecoderRecipe
from .run import digest_of, process_state

__all__ = [
    "PROMPT_KINDS",
    "Frame",
    "LabelAsker",
    "Labelled",
    "choose_labelled",
    "encode_frames",
    "label_ious",
    "open_frames",
    "recalibrate",
]

# How often an instance is asked for by a single point, by a box, by a box and a point, and by several points.
KINDS = ("point", "box", "box and point", "points")
PROMPT_KINDS = {"both": (0.4, 0.4, 0.1, 0.1), "box": (0.0, 0.8, 0.2, 0.0), "point": (0.75, 0.0, 0.0, 0.25)}
CHECK_INSTANCES = 8  # of an image
CENTRAL = 0.5  # share of points that are drawn about an instance's middle
NOISE = 0.1  # of a check's IoU, times the root of its masks
REPLAY = 0.1  # share of samples that are the starting model's own masks
LABELLED_SHARE = 0.1  # of a mask that may be labelled, for the mask to be replayed on a labelled frame
LINE_FROM = 20  # instances from which the predicted IoU's slope is fitted
SLOPES = (0.2, 2.0)
CERTAIN = 5e-4  # a label's probabilities keep this distance from 0 and 1


@dataclass(frozen=True)
class Frame:
    """An image that was looked at.

    Args:
        image: Its file.
        digest: Of its content.
        size: Its height and width in pixels.
        grid: Of its features.
        features: The file of its features of the padded whole, 256 x h x w, fp16, once there is one.
        turn: How the file's image is turned, as `turn_pixels` does.
    """

    image: ImageFile
    digest: str
    size: tuple[int, int]
    grid: Grid
    features: Path = Path()
    turn: int = 0

    @property
    def cells(self) -> tuple[int, int]:
        """The rows and columns of features that lie in the image, not in the padding."""
        height, width = resized_size(self.size, self.grid.image_size)
        return height // self.grid.stride, width // self.grid.stride

    def read(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the features, 1 x 256 x h x w."""
        return load_file(self.features)["features"][None].float().to(device)

    def pixels(self) -> Tensor:
        """Return the encoder's input, 1 x 3 x S x S."""
        return as_input(resized(turn_pixels(self.image.decode(), self.turn), self.grid.image_size), self.grid.image_size)


class Labelled(NamedTuple):
    """A frame and the instances that people marked in it."""

    frame: Frame
    instances: list[Instance]

    def masks(self, numbers: Sequence[int]) -> Tensor:
        """Return instances' masks as shares of pixels, from 0 to 1, N x 4 rows x 4 columns, without padding."""
        rows, columns = self.frame.cells
        side = self.frame.grid.stride // 4
        height, width = resized_size(self.frame.size, self.frame.grid.image_size)
        out = torch.zeros(len(numbers), 4 * rows, 4 * columns)
        for share, number in zip(out, numbers, strict=True):
            whole = Image.fromarray(self.instances[number].mask.astype(np.uint8) * 255)
            mask = np.asarray(whole.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
            share.copy_(F.avg_pool2d(torch.from_numpy(mask)[None, : 4 * rows * side, : 4 * columns * side], side)[0])
        return out

    def boxes(self, numbers: Sequence[int]) -> Tensor:
        """Return instances' boxes, N x 4, x0, y0, x1, y1 in pixels of the input."""
        scale = self.frame.grid.image_size / max(self.frame.size)
        return torch.tensor([self.instances[number].box for number in numbers], dtype=torch.float32) * scale

    def turned(self, turn: int) -> "Labelled":
        """Return the same, turned as `turn_pixels` does."""
        height, width = self.frame.size
        frame = replace(self.frame, size=(width, height) if turn % 2 else (height, width), turn=turn)
        return Labelled(frame, [Instance(turn_pixels(instance.mask, turn)) for instance in self.instances])


def turn_pixels(pixels: np.ndarray[Any, Any], turn: int) -> np.ndarray[Any, Any]:
    """Return H x W or H x W x C turned to the left by `turn` quarters; from 4 on mirrored before, left to right."""
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if turn >= 4 else pixels, turn % 4))


def open_frames(images: Iterable[ImageFile], grid: Grid) -> tuple[dict[ImageFile, Frame], list[ImageFile]]:
    """Return images as frames, one of each content, and the images that cannot be used."""
    frames: dict[ImageFile, Frame] = {}
    digests: set[str] = set()
    skipped: list[ImageFile] = []
    for image in images:
        try:
            digest = hashlib.sha256(image.read_bytes()).hexdigest()[:32]
            pixels = image.decode()
            size = pixels.shape[0], pixels.shape[1]
            check_aspect(size, grid.image_size, smallest=STRIDE)
        except (ImageReadError, InvalidInputError):
            skipped.append(image)
            continue
        if digest not in digests:
            frames[image] = Frame(image, digest, size, grid)
        digests.add(digest)
    return frames, skipped


def choose_labelled(matched: Matched, grid: Grid) -> tuple[list[Labelled], list[str]]:
    """Return the images whose labels can be learnt, with those labels; and what cannot, a sentence each."""
    frames, skipped = open_frames(matched.images, grid)
    left: defaultdict[str, list[str]] = defaultdict(list)
    left["labelled images that cannot be read or are too narrow"] += map(str, skipped)
    left["labelled images that are copies of another"] += (
        str(image) for image in matched.images if image not in frames and image not in skipped
    )
    labelled = []
    for image, frame in frames.items():
        annotated = matched.images[image]
        height, width = frame.size
        if annotated.size != frame.size:
            turned = ", as if turned: save the image upright" if annotated.size == (width, height) else ""
            sizes = f"{image}: {width} x {height} pixels, labels of {annotated.size[1]} x {annotated.size[0]}{turned}"
            left["labelled images of another size than their labels"].append(sizes)
            continue
        chosen = []
        for number, instance in enumerate(annotated.instances, 1):
            entry = Labelled(frame, [instance])
            reason = None
            if instance.iscrowd:
                reason = "labels of crowds"
            elif not instance.area:
                reason = "labels of no pixel, or outside of the image"
            elif not (entry.masks([0]) > 0.5).any():
                reason = f"labels too small to be seen at {grid.image_size} pixels"
            if reason:
                left[reason].append(f"{number} of {image}")
            else:
                chosen.append(instance)
        if chosen:
            labelled.append(Labelled(frame, chosen))
        else:
            left["labelled images without a mask to learn"].append(str(image))
    return labelled, [*matched.left_out, *(f"{reason}: {some(names)}" for reason, names in left.items() if names)]


def encode_frames(encoder: nn.Module, frames: Sequence[Frame], folder: Path) -> list[Frame]:
    """Write an encoder's features of frames, once; return the frames with them.

    A file of 2 MB a frame is named after the image's content and the encoder's weights. Several processes share them out.
    """
    make_folder(folder)
    state = process_state()
    key = digest_of(encoder)
    encoder = encoder.to(state.device).eval()
    encoded = []
    for i, frame in enumerate(tqdm(frames, desc="encoder", unit="image", disable=None if state.is_main_process else True)):
        turn = [f"turn {frame.turn}"] if frame.turn else []
        name = digest_of([frame.digest, key, str(frame.grid.image_size), str(frame.grid.stride), *turn])
        path = folder / f"student-{name}.safetensors"
        encoded.append(replace(frame, features=path))
        if i % state.num_processes == state.process_index and not is_whole(path):
            with torch.no_grad():
                features = encoder(frame.pixels().to(state.device))[0]
            write_tensors(path, {"features": features.half().cpu().contiguous()})
    state.wait_for_everyone()
    return encoded


class LabelAsker(Asker):
    """Frames with people's masks, and replay of the starting model's.

    Args:
        sam: The model as it is before the stage.
        labelled: To train on. A view of an image, turned, is one more.
        held_out: To measure on.
        replay: Frames of other objects, without labels.
        how: How many prompts.
        seed: Of everything random.
        prompt_kind: A key of `PROMPT_KINDS`.

    Raises:
        InvalidInputError: there is no frame to train on, or none to measure on.
    """

    keeps_best = True

    def __init__(
        self,
        sam: Sam,
        labelled: Sequence[Labelled],
        held_out: Sequence[Labelled],
        replay: Sequence[Frame],
        how: DecoderRecipe,
        seed: int,
        prompt_kind: str = "both",
    ) -> None:
        if not labelled or not held_out:
            raise InvalidInputError("there is no labelled image to train on, or none to measure on: label two or more.")
        self.start = FrozenDecoder(sam)
        self.labelled, self.held_out, self.replay = labelled, held_out, replay
        # An image is drawn the more often the more labels it has, so that each counts alike.
        self.drawn = [entry for entry in labelled for _ in range(max(1, round(len(entry.instances) / how.instances)))]
        self.how, self.seed, self.prompt_kind = how, seed, prompt_kind
        self.count, self.corrections = len(self.drawn), how.corrections
        self.device = torch.device("cpu")
        # Checks on the way are quick: the time is for steps.
        images = evenly_spaced(held_out, CHECK_IMAGES)
        self.checked = [entry._replace(instances=evenly_spaced(entry.instances, CHECK_INSTANCES)) for entry in images]
        self.tolerance = NOISE / sum(len(entry.instances) for entry in self.checked) ** 0.5

    def to(self, device: torch.device) -> None:
        self.device = device
        self.start.to(device)

    def describe(self) -> dict[str, Any]:
        names = [frame.features.name for frame in self.replay]
        for entry in [*self.labelled, *self.held_out]:
            names += [entry.frame.features.name, *(encode_rle(instance.mask)["counts"] for instance in entry.instances)]
        return {
            "prompt_kind": self.prompt_kind,
            "images": len({entry.frame.image for entry in self.labelled}),
            "views": len(self.labelled),
            "held_out": len(self.held_out),
            "instances": sum(len(entry.instances) for entry in self.labelled if not entry.frame.turn),
            "replay_images": len(self.replay),
            "images_sha256": digest_of(names),
        }

    def __call__(self, number: int) -> Sample:
        """Half of the samples are without the features of the padding."""
        rng = np.random.default_rng([self.seed, number])
        epoch, position = divmod(number, self.count)
        entry = self.drawn[int(draw_order(self.count, self.seed, ORDER, epoch)[position])]
        replayed, cropped = rng.random(2) < (REPLAY, 0.5)
        frame, asked = entry.frame, []
        if replayed and self.replay and rng.random() < 0.5:
            frame = self.replay[int(rng.integers(len(self.replay)))]
            asked = self._replay(frame, None, rng)
        elif replayed:
            asked = self._replay(frame, entry.masks(range(len(entry.instances))).amax(0) > 0.5, rng)
        if not asked:
            frame, asked = entry.frame, self._ask(entry, rng)
        image = frame.pixels().to(self.device) if self.how.encoder_rate else frame.read(self.device)
        return Sample(image, asked, frame.cells if cropped else None)

    def _ask(self, entry: Labelled, rng: np.random.Generator) -> list[Prompts]:
        numbers = rng.permutation(len(entry.instances))[: self.how.instances].tolist()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        masks, boxes = entry.masks(numbers), entry.boxes(numbers)
        logits = masks.clamp(CERTAIN, 1 - CERTAIN).logit()[:, None].to(self.device)
        rows, columns = entry.frame.cells
        stride = entry.frame.grid.stride
        sides = torch.tensor([columns, rows, columns, rows]) * stride
        drawn = torch.minimum(move_boxes(boxes, stride, rng).clamp(min=0), sides)
        kinds = torch.from_numpy(rng.choice(len(KINDS), len(numbers), p=PROMPT_KINDS[self.prompt_kind]))
        several = int(rng.integers(2, 5))
        asked = []
        for kind, name in enumerate(KINDS):
            which = kinds == kind
            if not which.any():
                continue
            points = None
            if name != "box":
                points = draw_inside(masks[which] > 0.5, several if name == "points" else 1, stride, generator).to(self.device)
            asked.append(
                Prompts(
                    points,
                    None,
                    drawn[which].to(self.device) if name.startswith("box") else None,
                    logits[which],
                    torch.ones(int(which.sum()), 1, device=self.device),
                    torch.full((int(which.sum()), 1), 1 / self.how.instances, device=self.device),
                    ambiguous=name == "point",
                )
            )
        return asked

    def _replay(self, frame: Frame, known: Tensor | None, rng: np.random.Generator) -> list[Prompts]:
        """Ask the starting model; leave out what people have labelled, `known`, 4 rows x 4 columns."""
        rows, columns = frame.cells
        asked = ask(self.start, frame.read(self.device)[..., :rows, :columns], self.how, rng)
        if known is None:
            return asked
        known = known.to(self.device)
        kept = []
        for prompts in asked:
            masks = prompts.logits > 0
            shares = (masks & known).sum((-2, -1)) / masks.sum((-2, -1)).clamp(min=1)
            weights = prompts.weights * (shares <= LABELLED_SHARE)
            if prompts.points is not None:
                x, y = (prompts.points[:, 0] / (self.start.stride / 4)).long().unbind(1)
                weights = weights * ~known[y.clamp(max=known.shape[0] - 1), x.clamp(max=known.shape[1] - 1)][:, None]
            asked_for = (weights > 0).any(1)
            if asked_for.any():
                kept.append(select(prompts._replace(weights=weights), asked_for))
        return kept

    def measure(self, decoder: Decoder, encoder: nn.Module | None = None, *, quick: bool = False) -> dict[str, float]:
        """Return means over images of their instances' mean IoU with the labels."""
        measured = self.checked if quick else self.held_out
        found = [label_ious(decoder, entry, self.device, encoder) for entry in measured]
        return {f"{kind}_iou": float(np.mean([ious[kind].mean() for ious in found])) for kind in ("box", "point")}

    def score(self, found: Mapping[str, float]) -> float:
        return super().score(found) if self.prompt_kind == "both" else round(found[f"{self.prompt_kind}_iou"], 4)


@torch.no_grad()
def label_ious(
    decoder: Decoder, entry: Labelled, device: torch.device | str = "cpu", encoder: nn.Module | None = None
) -> dict[str, Any]:
    """Return the IoUs of a decoder's masks with an image's labels, at the decoder's resolution, by prompt.

    "box" is by the instances' boxes. "point" is by their innermost points, with the best of three masks by predicted IoU. The
    predicted IoUs are "box_score" and "point_score". With an encoder the features are its own, and else those that are kept.
    """
    features = entry.frame.read(device) if encoder is None else encoder(entry.frame.pixels().to(device))
    numbers = range(len(entry.instances))
    rows, columns = entry.frame.cells
    wanted = entry.masks(numbers) > 0.5
    points = innermost(wanted, entry.frame.grid.stride)
    found: dict[str, Any] = {}
    for kind, prompt in (("box", {"boxes": entry.boxes(numbers).to(device)}), ("point", {"points": points.to(device)})):
        out = decoder(features, **prompt)
        chosen = out.scores[:, 1:].argmax(1) + 1 if kind == "point" else torch.zeros(len(numbers), dtype=torch.long)
        rank = torch.arange(len(numbers))
        masks = out.logits[rank, chosen, : 4 * rows, : 4 * columns].cpu() > 0
        found[kind] = mask_ious(masks, wanted).numpy()
        found[f"{kind}_score"] = out.scores[rank, chosen].cpu().numpy()
    return found


def recalibrate(sam: Sam, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit a Sam's predicted IoUs to the true ones by a line each for boxes and for single points, folded into its last layer.

    The line for single points is the same for the three masks, so that the same one is picked.

    Args:
        sam: Its mask decoder's head for the predicted IoUs is changed.
        found: What `label_ious` returned for held-out images.

    Returns:
        For "box" and "point": the line's slope and offset, and the mean error of the predicted IoUs before and after, the
        latter for each image with the line that is fitted on the others.
    """
    layer = cast(nn.Linear, cast(Any, sam.mask_decoder.iou_prediction_head).layers[-1])
    record: dict[str, Any] = {}
    for kind, rows in (("box", slice(0, 1)), ("point", slice(1, None))):
        pairs = [(ious[f"{kind}_score"], ious[kind]) for ious in found]
        slope, offset = fit_line(pairs)
        with torch.no_grad():
            layer.weight[rows] *= slope
            layer.bias[rows] = slope * layer.bias[rows] + offset
        errors = [np.abs(predicted - true) for predicted, true in pairs]
        record[kind] = {"slope": slope, "offset": offset, "error_before": float(np.concatenate(errors).mean())}
        if len(pairs) > 1:
            for i, (predicted, true) in enumerate(pairs):
                a, b = fit_line([*pairs[:i], *pairs[i + 1 :]])
                errors[i] = np.abs(a * predicted + b - true)
            record[kind]["error_after"] = float(np.concatenate(errors).mean())
    return record


def fit_line(pairs: Sequence[tuple[Any, Any]]) -> tuple[float, float]:
    """Return slope and offset of the line from predicted to true IoUs; of few instances the slope is 1."""
    predicted, true = (np.concatenate(values).astype(np.float64) for values in zip(*pairs, strict=True))
    slope = 1.0
    if len(predicted) >= LINE_FROM and predicted.std() > 1e-3:
        slope = float(np.clip(np.polyfit(predicted, true, 1)[0], *SLOPES))
    return slope, float(true.mean() - slope * predicted.mean())


def depths(masks: Tensor) -> Tensor:
    """Return how far pixels of masks, P x h x w, are from the outside, by chessboard distance; 0 outside."""
    out = torch.zeros_like(masks, dtype=torch.float32)
    for mask, depth in zip(masks, out, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if not len(rows):
            continue
        window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)  # as most are small
        left = mask[window].float()[None]
        while left.any():
            depth[window] += left[0]
            left = -F.max_pool2d(-F.pad(left, (1, 1, 1, 1)), 3, 1)
    return out


def innermost(masks: Tensor, stride: int) -> Tensor:
    """Return points, P x 2 in pixels of the input, that are farthest from the outside of masks; the middle one of several."""
    points = []
    for depth in depths(masks):
        ys, xs = (depth == depth.max()).nonzero().unbind(1)
        points.append(torch.stack([xs[len(xs) // 2], ys[len(ys) // 2]]))
    return (torch.stack(points) + 0.5) * (stride / 4)


def draw_inside(masks: Tensor, count: int, stride: int, generator: torch.Generator) -> Tensor:
    """Draw points in masks, P x h x w, none of which is empty: P x count x 2; half about the middle, as people click."""
    anywhere = points_in(masks, count, stride, generator)
    depth = depths(masks)
    middle = points_in(masks & (depth > 0.6 * depth.amax((-2, -1), keepdim=True)), count, stride, generator)
    central = torch.rand(len(masks), count, 1, generator=generator) < CENTRAL
    return torch.where(central, middle, anywhere)
