"""What docs/how/edge_chips.md says of the encoder that chips' compilers get, in fp32 and in INT8.

`operators/` has the lists that compilers publish of what they take, each with its version and its address.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from groupmix_sam.inference.export.onnx import quantize

from ...release import ALL

LISTS = sorted((Path(__file__).parent / "operators").iterdir())
# INT8 adds these, and nothing else (test_int8_in_onnx_runtime): ONNX Runtime writes HardSwish as HardSigmoid times its input.
QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "HardSigmoid"}
SLOW = [pytest.mark.release, pytest.mark.skipif(not ALL, reason="it takes 25 s: make test-all runs it")]


@pytest.fixture(scope="module", params=["fp32", pytest.param("int8", marks=SLOW)])
def encoder(request, fast_graphs, tmp_path_factory):
    """The fast encoder. What it is calibrated on changes no operator."""
    if request.param == "fp32":
        return onnx.load(fast_graphs / "encoder.onnx")
    path = tmp_path_factory.mktemp("int8") / "encoder.onnx"
    shutil.copy(fast_graphs / "encoder.onnx", path)
    quantize(path, [np.random.default_rng(0).normal(size=(1, 3, 512, 512)).astype(np.float32)], products_only=True)
    model = onnx.load(path)
    assert {node.op_type for node in model.graph.node} >= QUANTIZED
    return model


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_operators_are_in_the_compilers_lists(encoder, path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[1].startswith("# https://"), "a list names its source"
    supported = {name for line in lines if not line.startswith("#") for name in line.split()}
    assert {node.op_type for node in encoder.graph.node} | QUANTIZED <= supported


def test_what_the_lists_remark(encoder):
    """Rockchip takes opsets up to 19, Hailo from 15 to 21; Rockchip resizes by bilinear or nearest."""
    assert [(entry.domain, entry.version) for entry in encoder.opset_import if entry.domain == ""] == [("", 18)]
    assert {node.domain for node in encoder.graph.node} <= {"", "ai.onnx"}
    for node in encoder.graph.node:
        if node.op_type == "Resize":
            attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            assert attributes["mode"] == b"linear"


def test_its_shapes_are_fixed(encoder):
    graph = onnx.shape_inference.infer_shapes(encoder).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    assert shapes["images"] == [1, 3, 512, 512]
    assert shapes["features"] == [1, 256, 64, 64]
    assert all(side > 0 for shape in shapes.values() for side in shape)
    outputs = {name for node in graph.node for name in node.output}
    assert outputs <= shapes.keys()
    assert max(len(shape) for shape in shapes.values()) == 4
