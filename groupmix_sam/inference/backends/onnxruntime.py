"""ONNX Runtime as a backend."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ...errors import InvalidInputError, RuntimeUnavailableError, import_extra
from .base import MOST_WINDOWS, input_refused

__all__ = ["OnnxBackend"]

# Those that have their tensors in the memory of NVIDIA's GPUs, as PyTorch has.
ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class OnnxBackend:
    """An ONNX file in ONNX Runtime.

    Tensors are bound where they lie: with NVIDIA's providers results stay on the GPU, if PyTorch has CUDA too.

    Args:
        path: The file.
        providers: ONNX Runtime's execution providers, the best first; every one of them must load.
        device_id: Which of several GPUs.
        threads: For one operation; None leaves it to ONNX Runtime.
        window: Of an encoder, the height and width that it takes in place of the file's own.

    Raises:
        MissingExtraError: there is no onnxruntime, or for a window no onnx.
        RuntimeUnavailableError: a provider is not there or did not load, or the file cannot be read.
        InvalidInputError: the encoder takes no other size.
    """

    def __init__(
        self,
        path: Path,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        device_id: int = 0,
        threads: int | None = None,
        window: tuple[int, int] | None = None,
    ) -> None:
        given = path, providers, device_id, threads
        self._load_window = lru_cache(MOST_WINDOWS)(lambda size: OnnxBackend(*given, window=size))
        ort = import_extra("onnxruntime", "onnx")
        known = ort.get_available_providers()
        missing = [name for name in providers if name not in known]
        if missing:
            raise RuntimeUnavailableError(
                f"this onnxruntime has no {', '.join(missing)}, only {', '.join(known)}: "
                "install onnxruntime-gpu for NVIDIA's, or ask for one of these."
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Each model has threads of its own. After a run they would spin, waiting for the next, on the cores that another needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        settings = [{"device_id": str(device_id)} if device_id else {} for _ in providers]
        source = str(path) if window is None else _resized(path, window)
        try:
            self.session = ort.InferenceSession(source, options, providers=list(providers), provider_options=settings)
        except Exception as e:  # ONNX Runtime's errors have no base of their own
            raise RuntimeUnavailableError(f"ONNX Runtime does not load {path} ({e}): export it again.") from e
        # Providers that are listed but find no device are dropped without an error.
        lost = [name for name in providers if name not in self.session.get_providers()]
        if lost:
            raise RuntimeUnavailableError(
                f"{', '.join(lost)} did not load, and ONNX Runtime would run on {self.session.get_providers()[0]} instead: "
                "check the driver and its libraries, or ask for that provider."
            )
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        on_cuda = providers[0] in ON_CUDA and torch.cuda.is_available()
        self.device = torch.device("cuda", device_id) if on_cuda else torch.device("cpu")

    def for_window(self, height: int, width: int) -> "OnnxBackend":
        """Return the encoder for windows of that size, multiples of 16; it is loaded when it is first asked for."""
        return self._load_window((height, width))

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        # Kept until the run is over: a binding knows addresses alone.
        tensors = [x.to(self.device, torch.float32).contiguous() for x in inputs]
        place = self.device.type, self.device.index or 0
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # ONNX Runtime has streams of its own
        binding = self.session.io_binding()
        try:
            for name, x in zip(self.inputs, tensors, strict=True):
                binding.bind_input(name, *place, np.float32, tuple(x.shape), x.data_ptr())
            for name in self.outputs:
                binding.bind_output(name, *place)
            self.session.run_with_iobinding(binding)
        except Exception as e:
            raise input_refused(inputs, e) from e
        binding.synchronize_outputs()
        # Only the inner class of every version of ONNX Runtime gives a tensor away.
        return [from_dlpack(value._ortvalue) for value in binding.get_outputs()]


def _resized(path: Path, size: tuple[int, int]) -> bytes:
    """Return an encoder that takes images of another height and width, of which its export made constants.

    These are the shapes of reshapes between tokens as a list, B x N x C, and as a grid, B x rows x columns x C.
    """
    onnx: Any = import_extra("onnx", "onnx")
    model = onnx.load(path)
    graph = model.graph
    dims = graph.input[0].type.tensor_type.shape.dim
    reshapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in graph.initializer if tensor.name in reshapes}
    fixed = any(node.op_type == "Resize" and len(node.input) > 3 for node in graph.node)
    if len(dims) != 4 or fixed or shapes.keys() != reshapes or not {len(shape) for shape in shapes.values()} <= {3, 4}:
        raise InvalidInputError(f"{path} takes one size, and no window: give the export of a GroupMixFormer.")
    height, width = (dim.dim_value for dim in dims[2:])
    for shape in shapes.values():
        if len(shape) == 4:
            shape[1:3] = shape[1] * size[0] // height, shape[2] * size[1] // width
        else:
            shape[1] = shape[1] * size[0] * size[1] // (height * width)
    for tensor in graph.initializer:
        if tensor.name in shapes:
            tensor.CopyFrom(onnx.numpy_helper.from_array(shapes[tensor.name], tensor.name))
    dims[2].dim_value, dims[3].dim_value = size
    for dim in graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    del graph.value_info[:]
    content: bytes = model.SerializeToString()
    return content
