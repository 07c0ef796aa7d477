"""Teachers: MobileSAM's encoder or another SAM's, from torch weights, an ONNX file or a TensorRT engine."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import timm
import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn

from ..encoders.config import EMBED_DIM, STRIDE
from ..encoders.tiny_vit import checkpoint_filter_fn
from ..errors import WeightsError
from ..files import sha256
from ..inference.backends.base import Backend
from ..inference.backends.onnxruntime import OnnxBackend
from ..inference.backends.tensorrt import TensorrtBackend
from ..weights import SAM_VITS, find_weights, read_weights
from .data import Maps

__all__ = ["RuntimeTeacher", "Teacher", "TorchTeacher", "load_teacher"]

MOBILE_SAM = "sam_tiny_vit_5m"


class Teacher(Protocol):
    """What is learnt from: its features, B x 256 x H/16 x W/16, of B x 3 x H x W, and maps on the way to them if it shows any.

    `key` tells it from other teachers in a cache. `channels` are those of its maps by name, "features" among them.
    `image_size` is the only side in pixels that it takes, None if it takes any.
    """

    key: str
    image_size: int | None

    @property
    def channels(self) -> dict[str, int]:
        """The channels of the maps, by name."""

    def __call__(self, x: Tensor) -> Maps:
        """Return the maps of a batch, on the batch's device."""


class TorchTeacher:
    """A SAM's encoder in torch. `taps` are modules of it whose outputs are shown as well, by name, with their channels."""

    def __init__(
        self,
        encoder: nn.Module,
        key: str,
        taps: dict[str, tuple[nn.Module, int]] | None = None,
        image_size: int | None = None,
    ) -> None:
        self.key = key
        self.image_size = image_size
        self.encoder = encoder.eval().requires_grad_(False)
        self.taps = taps or {}
        self.channels = {"features": EMBED_DIM} | {name: channels for name, (_, channels) in self.taps.items()}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Maps:
        """See `Teacher`. On a CPU it sees one image at a time: eight at once are no faster and take 8 GB."""
        self.encoder.to(x.device)
        parts = [self._maps(part) for part in x.split(1 if x.device.type == "cpu" else len(x))]
        return {name: torch.cat([maps[name] for maps in parts]) for name in parts[0]}

    def _maps(self, x: Tensor) -> Maps:
        maps: Maps = {}
        handles = [
            module.register_forward_hook(lambda _m, _i, out, name=name: maps.__setitem__(name, out))
            for name, (module, _) in self.taps.items()
        ]
        try:
            return {"features": self.encoder(x), **maps}
        finally:
            for handle in handles:
                handle.remove()


class RuntimeTeacher:
    """An encoder of one input and one output, B x 3 x S x S to B x 256 x S/16 x S/16, in a runtime other than torch.

    Args:
        path: The file, for the key and for errors.
        model: The same, loaded. Its input is normalised as SAM's encoders expect.
        at_once: How many images it takes, None for any number.
        image_size: The side that it takes, None for any, or where a runtime has to tell.
    """

    channels: ClassVar[dict[str, int]] = {"features": EMBED_DIM}

    def __init__(self, path: Path, model: Backend, at_once: int | None, image_size: int | None = None) -> None:
        self.key = sha256(path)
        self.path = path
        self.model = model
        self.at_once = at_once
        self.image_size = image_size

    def __call__(self, x: Tensor) -> Maps:
        """See `Teacher`. A file made for one image at a time gets them one by one."""
        size = self.at_once or len(x)
        outputs = [self.model(part) for part in x.split(size)]
        features = torch.cat([out[0] for out in outputs])
        expected = (len(x), EMBED_DIM, x.shape[2] // STRIDE, x.shape[3] // STRIDE)
        if len(outputs[0]) != 1 or tuple(features.shape) != expected:
            raise WeightsError(
                f"{self.path} gives {tuple(features.shape)} and not SAM's features, {expected}: export the encoder alone."
            )
        return {"features": features.to(x.device)}


def load_teacher(
    checkpoint: str | PathLike[str], providers: Sequence[str] = ("CPUExecutionProvider",)
) -> tuple[Teacher, dict[str, Tensor]]:
    """Return a teacher and, where it comes from torch, all of its SAM's weights by their own names.

    Args:
        checkpoint: MobileSAM's `mobile_sam.pt` or segment-anything's `sam_vit_*.pth`, or the same as safetensors; an `.onnx`
            file; a TensorRT `.engine` or `.plan`; a path or "hf-hub:org/repo[@revision]".
        providers: ONNX Runtime's, for an ONNX file.

    Raises:
        WeightsNotFoundError: there is nothing where `checkpoint` points.
        WeightsError: it is no teacher.
        RuntimeUnavailableError: a provider did not load, the file cannot be read, or there is no GPU for TensorRT.
        MissingExtraError: the runtime is not installed.
    """
    path = find_weights(checkpoint, MOBILE_SAM)
    if path.suffix == ".onnx":
        model = OnnxBackend(path, providers)
        batch, *_, side = (n if isinstance(n, int) else None for n in model.session.get_inputs()[0].shape)
        return RuntimeTeacher(path, model, batch, side), {}
    if path.suffix in {".engine", ".plan"}:
        return RuntimeTeacher(path, TensorrtBackend(path), 1), {}
    state_dict, _ = read_weights(path)
    position = state_dict.get("image_encoder.pos_embed")
    try:
        if position is not None and position.shape[-1] in SAM_VITS:
            encoder = cast(Any, sam_model_registry[SAM_VITS[position.shape[-1]]]()).image_encoder
            names = {k.removeprefix("image_encoder."): v for k, v in state_dict.items() if k.startswith("image_encoder.")}
            encoder.load_state_dict(names)
            return TorchTeacher(encoder, sha256(path), image_size=encoder.img_size), state_dict
        encoder = timm.create_model(MOBILE_SAM)
        # The biases that timm's TinyVit keeps in eval mode would be those from before loading, had it been called by then.
        encoder.load_state_dict(checkpoint_filter_fn(state_dict, encoder))
    except RuntimeError as e:
        raise WeightsError(
            f"{path} is no teacher: give MobileSAM's mobile_sam.pt, segment-anything's sam_vit_b, _l or _h, or an ONNX file."
        ) from e
    if not any(k.startswith("image_encoder.layers.") for k in state_dict):
        raise WeightsError(
            f"{path} has not MobileSAM's own names, by which the student starts from it: give its mobile_sam.pt."
        )
    stage = cast(Any, encoder).stages[2]
    taps = {"hint_in": (stage.downsample, 160), "hint_out": (stage, 160)}
    return TorchTeacher(encoder, sha256(path), taps), state_dict


def teach(batch: Maps, teacher: Callable[[Tensor], Maps]) -> Maps:
    """Return a batch of `Samples` with the teacher's maps, B x h x w x C, asking it unless they came from the cache."""
    if "features" in batch:
        return batch
    maps = {name: m.permute(0, 2, 3, 1) for name, m in teacher(batch.get("image", batch["input"])).items()}
    if "cells" in batch:
        side = batch["valid"].shape[1]
        crops = len(batch["cells"]) // len(batch["image"])
        maps = {
            name: torch.stack([_window(m[i // crops], row, column, side) for i, (row, column) in enumerate(batch["cells"])])
            for name, m in maps.items()
        }
    return batch | maps


def _window(m: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Cut a square out of a map, H x W x C, filled up where the map ends, which "valid" tells."""
    part = m[row : row + side, column : column + side]
    return nn.functional.pad(part, (0, 0, 0, side - part.shape[1], 0, side - part.shape[0]))
