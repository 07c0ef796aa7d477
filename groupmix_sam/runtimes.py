"""One way to call a model in PyTorch, ONNX Runtime, OpenVINO and TensorRT: NumPy arrays in, in the model's order, and out.

Each runtime is imported where it is used. What a runtime would do silently, such as falling back to the CPU, is an error.
"""

import ctypes
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import InvalidInputError, RuntimeUnavailableError
from .extras import import_extra

__all__ = [
    "Model",
    "OnnxModel",
    "OpenvinoModel",
    "TensorrtModel",
    "TorchModel",
    "import_tensorrt",
    "keep_memory",
    "openvino_core",
]

Array = NDArray[np.float32]
Model = Callable[..., list[Array]]


def keep_memory() -> None:
    """Have glibc keep freed memory: much of a pass goes into giving large tensors back and faulting their pages in again."""
    if sys.platform == "linux" and not torch.cuda.is_available():
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            for option, value in ((-4, 0), (-1, -1), (-2, 256 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
                mallopt(option, value)


class TorchModel:
    """A PyTorch function of tensors, as it is on a device and in a dtype; fp32 arrays in and out."""

    def __init__(self, function: Callable[..., Any], device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.function = function
        self.device = device
        self.dtype = dtype

    @torch.inference_mode()
    def __call__(self, *inputs: Array) -> list[Array]:
        out = self.function(*(torch.from_numpy(x).to(self.device, self.dtype) for x in inputs))
        return [x.float().cpu().numpy() for x in ((out,) if isinstance(out, torch.Tensor) else out)]


class OnnxModel:
    """An ONNX file in ONNX Runtime.

    Args:
        path: The file.
        providers: ONNX Runtime's execution providers, the best first; every one of them must load.
        threads: For one operation; None leaves it to ONNX Runtime.

    Raises:
        MissingExtraError: there is no onnxruntime.
        RuntimeUnavailableError: a provider is not there or did not load, or the file cannot be read.
    """

    def __init__(self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int | None = None) -> None:
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
        try:
            self.session = ort.InferenceSession(str(path), options, providers=list(providers))
        except Exception as e:  # ONNX Runtime's errors have no base of their own
            raise RuntimeUnavailableError(f"ONNX Runtime does not load {path} ({e}): export it again.") from e
        # Providers that are listed but find no device are dropped without an error.
        lost = [name for name in providers if name not in self.session.get_providers()]
        if lost:
            raise RuntimeUnavailableError(
                f"{', '.join(lost)} did not load, and ONNX Runtime would run on {self.session.get_providers()[0]} instead: "
                "check the driver and its libraries, or ask for that provider."
            )
        self.names = [value.name for value in self.session.get_inputs()]

    def __call__(self, *inputs: Array) -> list[Array]:
        try:
            return list(self.session.run(None, dict(zip(self.names, inputs, strict=True))))
        except Exception as e:
            raise _refused(inputs, e) from e


class OpenvinoModel:
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
        core = openvino_core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            # Unpinned: several processes of one thread each would all be pinned to the first core.
            settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        try:
            self.model = core.compile_model(str(path), device, settings)
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

    def __call__(self, *inputs: Array) -> list[Array]:
        try:
            # The decoder's inputs are 10 MB, which would be copied for each prompt. Outputs are, as the next call reuses them.
            return list(self.model(list(inputs), share_inputs=True).values())
        except RuntimeError as e:
            raise _refused(inputs, e) from e


class TensorrtModel:
    """A TensorRT plan, of TensorRT 10 or newer.

    Args:
        path: The plan, built on this machine's GPU by this TensorRT.
        device: Where the buffers are.

    Raises:
        MissingExtraError: there is no tensorrt.
        RuntimeUnavailableError: there is no driver or GPU, or the plan is another machine's or version's.
    """

    def __init__(self, path: Path, device: str = "cuda") -> None:
        trt = import_tensorrt()
        self.device = torch.device(device)
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

    def __call__(self, *inputs: Array) -> list[Array]:
        # Kept until the stream is done: TensorRT knows addresses alone.
        tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in inputs]
        for name, tensor in zip(self.inputs, tensors, strict=True):
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise _refused(inputs, f"{name} is outside the plan's profile")
            self.context.set_tensor_address(name, tensor.data_ptr())
        results = [torch.empty(tuple(self.context.get_tensor_shape(name)), device=self.device) for name in self.outputs]
        for name, tensor in zip(self.outputs, results, strict=True):
            self.context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream().cuda_stream if self.device.type == "cuda" else 0
        if not self.context.execute_async_v3(stream):
            raise RuntimeUnavailableError("TensorRT failed to run the plan: its log says why; export it again on this machine.")
        return [tensor.cpu().numpy() for tensor in results]  # waits for the stream


def import_tensorrt() -> Any:
    """Return the module tensorrt, looked for after the driver: without one, importing it can end the process."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        found = False
    if not found:
        raise RuntimeUnavailableError("there is no NVIDIA driver with a GPU here: TensorRT builds and runs plans on one only.")
    return import_extra("tensorrt", "tensorrt")


@cache
def openvino_core() -> Any:
    """Return the process's one core.

    Each that has loaded the CPU plugin gives the thread another alternate signal stack, and puts back the one before when it
    goes. Of several that go in the order in which they came, the last one puts back memory that is freed, and the next signal
    with a handler in Python, as when a DataLoader's worker ends, kills the process.
    """
    return import_extra("openvino", "openvino").Core()


def _refused(inputs: Sequence[Array], why: object) -> InvalidInputError:
    shapes = ", ".join(str(x.shape) for x in inputs)
    return InvalidInputError(f"the model refuses inputs of {shapes} ({why}): export it for the sizes that you need.")
