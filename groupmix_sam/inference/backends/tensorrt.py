"""TensorRT as a backend."""

import ctypes
import sys
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ...errors import RuntimeUnavailableError, import_extra
from .base import input_refused

__all__ = ["TensorrtBackend", "import_tensorrt"]


class TensorrtBackend:
    """A TensorRT plan, of TensorRT 10 or newer.

    Args:
        path: The plan, built on this machine's GPU by this TensorRT.
        device: The GPU, where the results stay; the CPU for a test alone.

    Raises:
        MissingExtraError: there is no tensorrt.
        RuntimeUnavailableError: there is no driver or GPU, or the plan is another machine's or version's.
    """

    def __init__(self, path: Path, device: str = "cuda") -> None:
        trt = import_tensorrt()
        self.device = torch.device(device)
        self._lock = Lock()
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise RuntimeUnavailableError(
                f"TensorRT {trt.__version__} does not read {path}: a plan fits one GPU and one version, export it again here."
            )
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        with self._lock:  # the context has one set of addresses
            return self._run(*inputs)

    def _run(self, *inputs: Tensor) -> list[Tensor]:
        # Kept until the stream is done: TensorRT knows addresses alone.
        tensors = [x.to(self.device, torch.float32).contiguous() for x in inputs]
        for name, tensor in zip(self.inputs, tensors, strict=True):
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise input_refused(inputs, f"{name} is outside the plan's profile")
            self.context.set_tensor_address(name, tensor.data_ptr())
        results = [torch.empty(tuple(self.context.get_tensor_shape(name)), device=self.device) for name in self.outputs]
        for name, tensor in zip(self.outputs, results, strict=True):
            self.context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        if not self.context.execute_async_v3(stream.cuda_stream if stream else 0):
            raise RuntimeUnavailableError("TensorRT failed to run the plan: its log says why; export it again on this machine.")
        if stream is not None:
            stream.synchronize()  # the inputs' memory is free from here on, and other streams may read the results
        return results


def import_tensorrt() -> Any:
    """Return the module tensorrt, looked for after the driver: without one, importing it can end the process."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        found = False
    if not found:
        raise RuntimeUnavailableError("there is no NVIDIA driver with a GPU here: TensorRT builds and runs plans on one only.")
    return import_extra("tensorrt", "tensorrt")
