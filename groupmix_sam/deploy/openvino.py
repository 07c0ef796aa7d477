"""ONNX graphs to OpenVINO's IR, in fp32, fp16 or with an INT8 encoder."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError

__all__ = ["convert"]


def convert(folder: Path, precision: str, calibration: Iterable[NDArray[np.float32]]) -> None:
    """Turn every `.onnx` of a folder into `.xml` and `.bin`.

    Args:
        folder: Where the graphs are.
        precision: "fp32" and "bf16", which are the same file; "fp16", a file of half the size; "int8", of the encoder.
        calibration: The encoder's inputs for "int8".

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
            model = _quantize(model, list(calibration))
        ov.save_model(model, str(path.with_suffix(".xml")), compress_to_fp16=precision == "fp16")
        del model
        path.unlink()


def _quantize(model: Any, inputs: list[NDArray[np.float32]]) -> Any:
    try:
        import nncf
    except ImportError as e:
        raise MissingExtraError.of("nncf", "openvino") from e
    logging.getLogger("nncf").setLevel(logging.WARNING)
    # Convolutions in INT8 cost the masks most, and gain no time; the attention's products are left out as in ONNX Runtime's.
    # Not every encoder has them all.
    products = (op for op in model.get_ops() if op.get_type_name() == "MatMul")
    attention = [op.get_friendly_name() for op in products if not any(_is_constant(value) for value in op.input_values())]
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(names=attention, types=["Convolution", "GroupConvolution"], validate=False),
    )


def _is_constant(value: Any) -> bool:
    return bool(value.get_node().get_type_name() == "Constant")
