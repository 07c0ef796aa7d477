"""TensorRT without a GPU: against a fake, against the names in its bindings where they lie, and the refusal to import it.

The test marked by its skip runs the true thing where there is a GPU; it has never been run.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from groupmix_sam.deploy import Predictor
from groupmix_sam.deploy.export import export
from groupmix_sam.deploy.parity import Thresholds
from groupmix_sam.deploy.tensorrt import build_plans, lint
from groupmix_sam.errors import InvalidInputError, RuntimeUnavailableError
from groupmix_sam.runtimes import TensorrtModel, import_tensorrt

from .conftest import draw
from .fake_tensorrt import FakeBuilder, fake

GPU = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None


@pytest.fixture(params=[10, 11])
def faked(request, monkeypatch):
    """The fake in TensorRT's place, a driver taken to be there."""
    module = fake(request.param)
    for name in ("runtimes", "deploy.tensorrt"):
        monkeypatch.setattr(sys.modules[f"groupmix_sam.{name}"], "import_tensorrt", lambda: module)
    monkeypatch.setattr(FakeBuilder, "built", [])
    return module


def graph(path, nodes=None, sizes=("prompts", "points", 2), initializers=(), opset=18):
    """Write an ONNX file of one input x and one output y."""
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(sizes)) for name in "xy"]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], initializer=list(initializers))
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


def test_plans(faked, tmp_path):
    graph(tmp_path / "a.onnx", sizes=(1, 3, 8, 8))
    graph(tmp_path / "b.onnx")
    build_plans(tmp_path, tmp_path / "timing.cache")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.plan", "b.plan", "timing.cache"]
    assert (tmp_path / "b.plan").read_bytes().endswith(b"b.onnx")
    assert (tmp_path / "timing.cache").read_bytes() == b"+timed+timed"
    (first, fixed), (_, free) = FakeBuilder.built
    assert first.flags == (2 if faked.__version__.startswith("10") else 0)
    assert fixed.profiles == [{"x": ((1, 3, 8, 8),) * 3}]
    assert free.profiles == [{"x": ((1, 1, 2), (1, 2, 2), (64, 16, 2))}]
    graph(tmp_path / "a.onnx")
    build_plans(tmp_path, tmp_path / "timing.cache")
    assert (tmp_path / "timing.cache").read_bytes() == b"+timed" * 3


@pytest.mark.parametrize(("name", "match"), [("unparsed", "does not parse unparsed.onnx: error 0"), ("refused", "no plan")])
def test_refused_graphs(faked, tmp_path, name, match):
    graph(tmp_path / f"{name}.onnx")
    with pytest.raises(RuntimeUnavailableError, match=match):
        build_plans(tmp_path)


def test_runner(faked, tmp_path):
    """Addresses, shapes and the outputs' memory; of many shapes in turn."""
    (tmp_path / "a.plan").write_bytes(b"fake plan")
    model = TensorrtModel(tmp_path / "a.plan", device="cpu")
    for shape in ((2, 3), (5, 7, 1), (1,)):
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.testing.assert_array_equal(model(x)[0], 2 * x)
    with pytest.raises(InvalidInputError, match="outside the plan's profile"):
        model(np.zeros((65, 1), np.float32))
    (tmp_path / "a.plan").write_bytes(b"another machine's")
    with pytest.raises(RuntimeUnavailableError, match="export it again here"):
        TensorrtModel(tmp_path / "a.plan", device="cpu")


def test_lint(tmp_path):
    def faults(*nodes, **kwargs):
        return lint(graph(tmp_path / "a.onnx", list(nodes), **kwargs))

    node = helper.make_node
    assert faults(node("Identity", ["x"], ["y"])) == []
    assert "opset 16" in faults(node("Identity", ["x"], ["y"]), opset=16)[0]
    assert "OneHot" in faults(node("OneHot", ["x", "x", "x"], ["y"]))[0]
    assert "a shape that is an input" in faults(node("Reshape", ["x", "x"], ["y"]))[0]
    ints = {
        "zero": helper.make_tensor("zero", TensorProto.INT8, [], [0]),
        "five": helper.make_tensor("five", TensorProto.INT8, [], [5]),
        "bias": helper.make_tensor("bias", TensorProto.INT32, [1], [5]),
        "scale": helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
    }
    quantize = [node("QuantizeLinear", ["x", "scale", z], ["y"]) for z in ("zero", "five")]
    assert faults(quantize[0], initializers=ints.values()) == []
    assert "zero point" in faults(quantize[1], initializers=ints.values())[0]
    assert "int32" in faults(node("DequantizeLinear", ["bias", "scale"], ["y"]), initializers=ints.values())[0]


def test_no_driver(sam, monkeypatch, tmp_path):
    """tensorrt is not even looked for: importing it without a driver can end the process."""

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver"):
        import_tensorrt()
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver"):
        export(sam, tmp_path / "a", [draw()], runtime="tensorrt")
    assert not list(tmp_path.iterdir())


USED = """Builder Logger NetworkDefinitionCreationFlag OnnxParser Runtime TensorIOMode create_network parse_from_file num_errors
get_error create_builder_config create_timing_cache set_timing_cache get_timing_cache serialize create_optimization_profile
set_shape add_optimization_profile build_serialized_network deserialize_cuda_engine create_execution_context get_tensor_name
num_io_tensors get_tensor_mode set_input_shape set_tensor_address get_tensor_shape execute_async_v3"""


def test_names_in_the_bindings():
    """Every name that is called is in the compiled bindings; these load on a machine with TensorRT's libraries only."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None:
        pytest.skip("needs tensorrt-cu12-bindings or tensorrt-cu13-bindings, which pip installs without a GPU")
    binary = (Path(spec.origin).parent / "tensorrt.so").read_bytes()
    # Compilers let a string end in another one: of a name only the end is sure.
    assert [name for name in USED.split() if name.encode() + b"\0" not in binary] == []


@pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU and tensorrt")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_true_thing(sam, tmp_path, precision):
    export(sam, tmp_path / "a", [draw()], runtime="tensorrt", precision=precision, thresholds=Thresholds(0.9, 0.3, -10))
    exact, plan = Predictor(sam), Predictor(tmp_path / "a")
    box = np.array([20, 10, 100, 80])
    for predictor in (exact, plan):
        predictor.set_image(draw())
    np.testing.assert_allclose(plan.predict(box=box)[2], exact.predict(box=box)[2], atol=0.5)
