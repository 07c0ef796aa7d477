"""The runtimes: PyTorch, ONNX Runtime, OpenVINO and TensorRT, called alike."""

from .base import Backend
from .onnxruntime import OnnxBackend
from .openvino import OpenvinoBackend
from .tensorrt import TensorrtBackend
from .torch import TorchBackend

__all__ = ["Backend", "OnnxBackend", "OpenvinoBackend", "TensorrtBackend", "TorchBackend"]
