"""ONNX graphs to OpenVINO's IR, in fp32, fp16 or with an INT8 encoder."""

import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingExtraError

__all__ = ["convert"]


def convert(folder: Path, precision: str, calibration: Sequence[NDArray[np.float32]], products_only: bool = False) -> None:
    """Turn every `.onnx` of a folder into `.xml` and `.bin`.

    Args:
        folder: Where the graphs are.
        precision: "fp32" and "bf16", which are the same file; "fp16", a file of half the size; "int8", of the encoder.
        calibration: The encoder's inputs for "int8".
        products_only: Whether "int8" is of those convolutions alone that hold in it, without the last one.

    Raises:
        MissingExtraError: there is no openvino, or for int8 no nncf.
    """
    try:
        import openvino as ov
    except ImportError as e:
        raise MissingExtraError.of("openvino", "openvino") from e
    for path in sorted(folder.glob("*.onnx")):
        model = ov.convert_model(BytesIO(path.read_bytes()))  # a path is cut at commas
        if precision == "int8" and path.stem == "encoder":
            model = _quantize(model, calibration, products_only)
        ov.save_model(model, str(path.with_suffix(".xml")), compress_to_fp16=precision == "fp16")
        del model
        path.unlink()


def _quantize(model: Any, inputs: Sequence[NDArray[np.float32]], products_only: bool) -> Any:
    try:
        import nncf
    except ImportError as e:
        raise MissingExtraError.of("nncf", "openvino") from e
    logging.getLogger("nncf").setLevel(logging.WARNING)
    left = [op.get_friendly_name() for op in model.get_ops() if products_only and _stays_exact(op)]
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(names=left),
        # NNCF evens out only the inputs of MatMul by itself.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=0.95, matmul=0.95)
        ),
    )


def _stays_exact(op: Any) -> bool:
    """Whether an operation is a convolution or a product, but none of a GroupMixFormer's that hold in INT8."""
    if op.get_type_name() != "Convolution":
        return op.get_type_name() in {"GroupConvolution", "MatMul"}
    last = any(target.get_node().get_type_name() == "Result" for target in op.output(0).get_target_inputs())
    weight = op.input_value(1).get_node()
    outputs, _, *size = weight.get_output_shape(0)
    # The 1x1 convolutions are nearly all of the work. Those to one channel are LayerNorm's means, and those that mix q, k and v
    # cost some masks, by which this was chosen (docs/research/2026-11-25-int8.md).
    return last or size != [1, 1] or outputs == 1 or "qkv" in weight.get_friendly_name().split(".")
