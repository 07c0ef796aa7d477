"""ONNX graphs to OpenVINO's IR, in fp32, fp16 or with an INT8 encoder."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError

__all__ = ["convert"]


def convert(folder: Path, precision: str, calibration: Iterable[NDArray[np.float32]], convolutions: bool = True) -> None:
    """Turn every `.onnx` of a folder into `.xml` and `.bin`.

    Args:
        folder: Where the graphs are.
        precision: "fp32" and "bf16", which are the same file; "fp16", a file of half the size; "int8", of the encoder.
        calibration: The encoder's inputs for "int8".
        convolutions: Whether "int8" is of the encoder's convolutions and attention too, or of its products with weights alone.

    Raises:
        MissingExtraError: there is no openvino, or for int8 no nncf.
    """
    try:
        import openvino as ov
    except ImportError as e:
        raise MissingExtraError.of("openvino", "openvino") from e
    for path in sorted(folder.glob("*.onnx")):
        model = ov.convert_model(str(path))
        if precision == "int8" and path.stem == "encoder":
            model = _quantize(model, list(calibration), convolutions)
        ov.save_model(model, str(path.with_suffix(".xml")), compress_to_fp16=precision == "fp16")
        del model
        path.unlink()


def _quantize(model: Any, inputs: list[NDArray[np.float32]], convolutions: bool) -> Any:
    try:
        import nncf
    except ImportError as e:
        raise MissingExtraError.of("nncf", "openvino") from e
    logging.getLogger("nncf").setLevel(logging.WARNING)
    left: dict[str, list[str]] = {}
    if not convolutions:
        products = (op for op in model.get_ops() if op.get_type_name() == "MatMul")
        attention = [op.get_friendly_name() for op in products if not any(_is_constant(value) for value in op.input_values())]
        left = {"names": attention, "types": ["Convolution", "GroupConvolution"]}
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(**left),
    )


def _is_constant(value: Any) -> bool:
    return bool(value.get_node().get_type_name() == "Constant")
