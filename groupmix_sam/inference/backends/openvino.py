"""OpenVINO as a backend."""

import warnings
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ...errors import RuntimeUnavailableError, import_extra
from .base import input_refused

__all__ = ["OpenvinoBackend", "openvino_core"]

# Shapes of inputs after which a model is compiled anew, which takes a third of a second. For each shape the decoder for 1024
# pixels keeps 4 MB for good. Without OpenVINO's cache it would keep 3 MB, and release_memory() frees none of it.
MOST_SHAPES = 32


class OpenvinoBackend:
    """An OpenVINO IR, or an ONNX file, in OpenVINO.

    Args:
        path: The `.xml` or `.onnx` file.
        device: "CPU", "GPU" or another of OpenVINO's devices.
        precision: "f32" or "bf16": OpenVINO would choose by the processor. Where bf16 has no instructions a warning says so.
        threads: None leaves them to OpenVINO.

    Raises:
        MissingExtraError: there is no openvino.
        RuntimeUnavailableError: the device is not there, or the file cannot be read.
    """

    def __init__(self, path: Path, device: str = "CPU", precision: str = "f32", threads: int | None = None) -> None:
        self.device = torch.device("cpu")
        self._lock = Lock()
        core = openvino_core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            # Unpinned: several processes of one thread each would all be pinned to the first core.
            settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._compile = partial(core.compile_model, str(path), device, settings)
        self._shapes: set[tuple[torch.Size, ...]] = set()
        try:
            self.model = self._compile()
        except RuntimeError as e:
            raise RuntimeUnavailableError(
                f"OpenVINO does not load {path} on {device} ({e}): its devices are {', '.join(core.available_devices)}; "
                "check the name, or export again."
            ) from e
        if precision == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
            warnings.warn(
                f"this {device} has no instructions for bf16, and emulating them is slower than fp32: export in fp32 or int8.",
                stacklevel=2,
            )

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        arrays = [x.cpu().contiguous().numpy() for x in inputs]
        shapes = tuple(x.shape for x in inputs)
        # The model has one infer request, and a thread would get the answer to another's inputs. Requests for each thread
        # would keep buffers of hundreds of MB, and two at once are no faster: they share the cores.
        try:
            # The decoder's inputs are 10 MB, which would be copied for each prompt. Outputs are, as the next call reuses them.
            with self._lock:
                if shapes not in self._shapes and len(self._shapes) >= MOST_SHAPES:
                    self.model = self._compile()
                    self._shapes.clear()
                self._shapes.add(shapes)
                return [torch.from_numpy(x) for x in self.model(arrays, share_inputs=True).values()]
        except RuntimeError as e:
            raise input_refused(inputs, e) from e


@cache
def openvino_core() -> Any:
    """Return the process's one core.

    Each that has loaded the CPU plugin gives the thread another alternate signal stack, and puts back the one before when it
    goes. Of several that go in the order in which they came, the last one puts back memory that is freed, and the next signal
    with a handler in Python, as when a DataLoader's worker ends, kills the process.
    """
    return import_extra("openvino", "openvino").Core()
