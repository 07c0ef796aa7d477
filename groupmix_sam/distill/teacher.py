"""Teachers: MobileSAM's encoder or another SAM's, from torch weights, an ONNX file or a TensorRT engine."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import timm
import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn

from ..encoders.config import EMBED_DIM, STRIDE
from ..encoders.tiny_vit import checkpoint_filter_fn
from ..errors import InvalidInputError, MissingExtraError, WeightsError
from ..weights import find_weights, read_weights, sha256
from .data import Maps

__all__ = ["OnnxTeacher", "Teacher", "TensorRTTeacher", "TorchTeacher", "load_teacher"]

MOBILE_SAM = "sam_tiny_vit_5m"
# SAM's ViTs by their width, as segment-anything's registry names them.
VITS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


class Teacher(Protocol):
    """What is learnt from: its features, B x 256 x H/16 x W/16, of B x 3 x H x W, and maps on the way to them if it shows any.

    `key` tells it from other teachers in a cache. `channels` are those of its maps by name, "features" among them.
    """

    key: str

    @property
    def channels(self) -> dict[str, int]:
        """The channels of the maps, by name."""

    def __call__(self, x: Tensor) -> Maps:
        """Return the maps of a batch, on the batch's device."""


class TorchTeacher:
    """A SAM's encoder in torch. `taps` are modules of it whose outputs are shown as well, by name, with their channels."""

    def __init__(self, encoder: nn.Module, key: str, taps: dict[str, tuple[nn.Module, int]] | None = None) -> None:
        self.key = key
        self.encoder = encoder.eval().requires_grad_(False)
        self.taps = taps or {}
        self.channels = {"features": EMBED_DIM} | {name: channels for name, (_, channels) in self.taps.items()}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Maps:
        """See `Teacher`."""
        self.encoder.to(x.device)
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


class OnnxTeacher:
    """An encoder in ONNX, from B x 3 x S x S to B x 256 x S/16 x S/16, through ONNX Runtime.

    Args:
        path: The file. Its input is normalised as SAM's encoders expect.
        providers: ONNX Runtime's execution providers, such as "CUDAExecutionProvider"; all of them must load.
    """

    channels: ClassVar[dict[str, int]] = {"features": EMBED_DIM}

    def __init__(self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        try:
            import onnxruntime
        except ImportError as e:
            raise MissingExtraError.of("onnxruntime", "onnx") from e
        self.key = sha256(path)
        self.path = path
        try:
            self.session = onnxruntime.InferenceSession(path, providers=list(providers))
        except Exception as e:  # ONNX Runtime raises classes of its own, and ValueError for a provider that it does not know
            raise WeightsError(f"{path} cannot be loaded by ONNX Runtime with {', '.join(providers)} ({e}).") from e
        # A provider that cannot start is only warned about and left out: the run would go on, far slower.
        missing = [p for p in providers if p not in self.session.get_providers()]
        if missing:
            raise InvalidInputError(
                f"ONNX Runtime did not load {', '.join(missing)}, only {', '.join(self.session.get_providers())}: "
                "install the build and the drivers that it needs, or do not ask for it."
            )
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            raise WeightsError(f"{path} is no image encoder of one B x 3 x S x S float input: export the encoder alone.")
        self.input = inputs[0]

    def __call__(self, x: Tensor) -> Maps:
        """See `Teacher`. A file made for one picture at a time gets them one by one."""
        pictures = x.cpu().numpy()
        batch = self.input.shape[0]
        size = batch if isinstance(batch, int) else len(pictures)
        try:
            parts = [
                self.session.run(None, {self.input.name: pictures[i : i + size]})[0] for i in range(0, len(pictures), size)
            ]
        except Exception as e:
            raise WeightsError(
                f"{self.path} failed on {size} x {tuple(pictures.shape[1:])} ({e}): it takes {self.input.shape}."
            ) from e
        features = np.concatenate(parts)
        _check_features(self.path, features.shape, pictures.shape)
        return {"features": torch.from_numpy(features).to(x.device)}


class TensorRTTeacher:
    """An encoder as a TensorRT engine of one input and one output, for CUDA. Never run on hardware by its developers."""

    channels: ClassVar[dict[str, int]] = {"features": EMBED_DIM}

    def __init__(self, path: Path) -> None:
        if not torch.cuda.is_available():  # importing tensorrt without a driver can crash the process
            raise InvalidInputError(f"{path} needs an NVIDIA GPU and its driver, and torch sees none: use an ONNX file.")
        try:
            import tensorrt
        except ImportError as e:
            raise MissingExtraError.of("tensorrt", "tensorrt") from e
        self.key = sha256(path)
        self.path = path
        engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise WeightsError(f"{path} is no engine of TensorRT {tensorrt.__version__} for this GPU: build it here anew.")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = [engine.get_tensor_mode(name) for name in names]
        if modes != [tensorrt.TensorIOMode.INPUT, tensorrt.TensorIOMode.OUTPUT]:
            raise WeightsError(f"{path} has the tensors {', '.join(names)}: build one of the encoder alone.")
        self.engine, (self.input, self.output) = engine, names
        self.context = engine.create_execution_context()

    def __call__(self, x: Tensor) -> Maps:
        """See `Teacher`."""
        x = x.contiguous()
        if not self.context.set_input_shape(self.input, tuple(x.shape)):
            raise WeightsError(f"{self.path} was not built for {tuple(x.shape)}: build it with a profile that has it.")
        shape = tuple(self.context.get_tensor_shape(self.output))
        _check_features(self.path, shape, tuple(x.shape))
        features = torch.empty(shape, device=x.device)
        self.context.set_tensor_address(self.input, x.data_ptr())
        self.context.set_tensor_address(self.output, features.data_ptr())
        stream = torch.cuda.current_stream()
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise WeightsError(f"{self.path} failed to run: look at TensorRT's message above.")
        stream.synchronize()
        return {"features": features}


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
        InvalidInputError: a provider did not load, or there is no GPU for TensorRT.
        MissingExtraError: the runtime is not installed.
    """
    path = find_weights(checkpoint, MOBILE_SAM)
    if path.suffix == ".onnx":
        return OnnxTeacher(path, providers), {}
    if path.suffix in {".engine", ".plan"}:
        return TensorRTTeacher(path), {}
    state_dict, _ = read_weights(path)
    position = state_dict.get("image_encoder.pos_embed")
    try:
        if position is not None and position.shape[-1] in VITS:
            encoder = cast(Any, sam_model_registry[VITS[position.shape[-1]]]()).image_encoder
            names = {k.removeprefix("image_encoder."): v for k, v in state_dict.items() if k.startswith("image_encoder.")}
            encoder.load_state_dict(names)
            return TorchTeacher(encoder, sha256(path)), state_dict
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


def _check_features(path: Path, features: Sequence[int], pictures: Sequence[int]) -> None:
    expected = (pictures[0], EMBED_DIM, pictures[2] // STRIDE, pictures[3] // STRIDE)
    if tuple(features) != expected:
        raise WeightsError(f"{path} gives {tuple(features)} and not SAM's features, {expected}: export the encoder alone.")


def teach(batch: Maps, teacher: Callable[[Tensor], Maps]) -> Maps:
    """Return a batch of `Samples` with the teacher's maps, B x h x w x C, asking it unless they came from the cache."""
    if "features" in batch:
        return batch
    maps = {name: m.permute(0, 2, 3, 1) for name, m in teacher(batch.get("picture", batch["input"])).items()}
    if "picture" in batch:
        side = batch["valid"].shape[1]
        crops = len(batch["cells"]) // len(batch["picture"])
        maps = {
            name: torch.stack([_window(m[i // crops], row, column, side) for i, (row, column) in enumerate(batch["cells"])])
            for name, m in maps.items()
        }
    return batch | maps


def _window(m: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Cut a square out of a map, H x W x C, filled up where the map ends, which "valid" tells."""
    part = m[row : row + side, column : column + side]
    return nn.functional.pad(part, (0, 0, 0, side - part.shape[1], 0, side - part.shape[0]))
