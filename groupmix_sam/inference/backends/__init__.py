"""The runtimes: PyTorch, ONNX Runtime, OpenVINO and TensorRT, called alike."""

from .base import Backend
from .onnxruntime import OnnxModel
from .openvino import OpenvinoModel
from .tensorrt import TensorrtModel
from .torch import TorchModel

__all__ = ["Backend", "OnnxModel", "OpenvinoModel", "TensorrtModel", "TorchModel"]
