"""TensorRT without a GPU: against a fake, the fake against the true bindings where they lie, and the refusal to import it.

The test marked by its skip runs the true instance where there is a GPU; it has never been run.
"""

import ctypes
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from groupmix_sam.errors import InvalidInputError, RuntimeUnavailableError, SaveError
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.backends.tensorrt import TensorrtBackend, import_tensorrt
from groupmix_sam.inference.export.exporter import export
from groupmix_sam.inference.export.parity import Thresholds
from groupmix_sam.inference.export.tensorrt import build_plans, lint

from ..conftest import draw
from . import fake_tensorrt
from .fake_tensorrt import BUILT, fake

GPU = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None


@pytest.fixture(params=[10, 11])
def faked(request, monkeypatch):
    """The fake in TensorRT's place, a driver taken to be there."""
    module = fake(request.param)
    for name in ("backends.tensorrt", "export.tensorrt"):
        monkeypatch.setattr(sys.modules[f"groupmix_sam.inference.{name}"], "import_tensorrt", lambda: module)
    BUILT.clear()
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
    (first, fixed), (_, free) = BUILT
    assert first.flags == (2 if faked.__version__.startswith("10") else 1)
    assert fixed._profiles == [{"x": ((1, 3, 8, 8),) * 3}]
    assert free._profiles == [{"x": ((1, 1, 2), (1, 2, 2), (64, 16, 2))}]
    graph(tmp_path / "a.onnx")
    build_plans(tmp_path, tmp_path / "timing.cache")
    assert (tmp_path / "timing.cache").read_bytes() == b"+timed" * 3
    with pytest.raises(SaveError, match="could not be written"):
        build_plans(tmp_path, tmp_path / "no" / "timing.cache")


@pytest.mark.parametrize(("name", "match"), [("unparsed", "does not parse unparsed.onnx: error 0"), ("refused", "no plan")])
def test_refused_graphs(faked, tmp_path, name, match):
    graph(tmp_path / f"{name}.onnx")
    with pytest.raises(RuntimeUnavailableError, match=match):
        build_plans(tmp_path)


def test_runner(faked, tmp_path):
    """Addresses, shapes and the outputs' memory; of many shapes in turn. A tensor on the device is read where it lies."""
    (tmp_path / "a.plan").write_bytes(b"fake plan")
    model = TensorrtBackend(tmp_path / "a.plan", device="cpu")
    for shape in ((2, 3), (5, 7, 1), (1,)):
        x = torch.rand(shape)
        (y,) = model(x)
        assert model.context._addresses == {"x": x.data_ptr(), "y": y.data_ptr()}
        (z,) = model(y)
        assert model.context._addresses == {"x": y.data_ptr(), "y": z.data_ptr()}
        assert torch.equal(z, 4 * x)
    with pytest.raises(InvalidInputError, match="outside the plan's profile"):
        model(torch.zeros(65, 1))
    (tmp_path / "a.plan").write_bytes(b"another machine's")
    with pytest.raises(RuntimeUnavailableError, match="export it again here"):
        TensorrtBackend(tmp_path / "a.plan", device="cpu")


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


@pytest.mark.parametrize(("platform", "driver"), [("linux", "libcuda.so.1"), ("win32", "nvcuda.dll")])
def test_no_driver(sam, monkeypatch, tmp_path, platform, driver):
    """tensorrt is not even looked for: importing it without a driver can end the process."""
    asked = []

    def missing(name):
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver"):
        import_tensorrt()
    assert asked == [driver]
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver"):
        export(sam, tmp_path / "a", [draw()], runtime="tensorrt")
    assert not list(tmp_path.iterdir())


# What the bindings need of TensorRT's libraries before they can be looked at.
STUB = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParserRefitter_INTERNAL
createNvOnnxParser_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins
"""
LOOK = """
import json, tensorrt_bindings as trt

kinds = {kind: vars(trt)[kind] for kind in dir(trt)}
print(json.dumps({
    "version": trt.__version__,
    "members": {name: {member: str(getattr(kind, member).__doc__) for member in dir(kind)} for name, kind in kinds.items()},
    "strongly_typed": int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
    "dims": list(trt.Dims((1, 3, 8))),
}))
"""


@pytest.fixture(scope="module")
def bindings(tmp_path_factory):
    """What is in TensorRT's compiled Python module, which is really imported: with libraries whose functions all return 0."""
    spec, compiler = importlib.util.find_spec("tensorrt_bindings"), shutil.which("cc")
    if spec is None or sys.platform != "linux" or compiler is None:
        pytest.skip("needs tensorrt-cu12-bindings or tensorrt-cu13-bindings, which want no GPU, on Linux with a C compiler")
    folder, package = tmp_path_factory.mktemp("stubs"), Path(spec.origin).parent
    (folder / "stub.c").write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in STUB.split()))
    for library in set(re.findall(rb"libnv\w+\.so\.\d+", (package / "tensorrt.so").read_bytes())):
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library.decode(), "stub.c"], cwd=folder, check=True)
    # In a process of its own, as importing TensorRT without a driver can end one.
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(package.parent)}
    done = subprocess.run([sys.executable, "-c", LOOK], env=os.environ | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def parameters(signature):
    """Return the parameters, as "flags: int", whether each may be left out, and what is returned; self is left out."""
    plain = signature.replace("typing.SupportsInt", "int").replace("buffer", "Buffer")
    inside, returned = re.sub(r"\w+(\.|::)", "", plain)[1:].rsplit(") -> ", 1)
    given = [parameter.partition(" = ") for parameter in inside.split(", ") if not parameter.startswith("self")]
    return [name for name, _, _ in given], [bool(default) for _, default, _ in given], returned


def fake_members():
    """List each fake's class and what it offers: a signature, or None of what is no function."""
    for fake_class in vars(fake_tensorrt).values():
        if getattr(fake_class, "__module__", None) == fake_tensorrt.__name__ and isinstance(fake_class, type):
            for name, member in vars(fake_class).items():
                signature = inspect.signature(member) if inspect.isfunction(member) else None
                own = name == "__init__" and signature.return_annotation is inspect.Signature.empty
                if not own and (name == "__init__" or not name.startswith("_")):
                    text = signature and str(signature).replace("'", "")
                    yield pytest.param(fake_class.__name__.removeprefix("Fake"), name, text, id=f"{fake_class.__name__}.{name}")


@pytest.mark.parametrize(("kind", "name", "signature"), list(fake_members()))
def test_the_fake_against_the_bindings(bindings, kind, name, signature):
    """What the fake offers, and so all that is called, is in the bindings, and takes and returns the same."""
    text = bindings["members"][kind][name]
    if signature is None:
        return
    wanted, _, returned = parameters(signature)
    overloads = [parameters(found) for found in re.findall(rf"^(?:\d+\. )?{name}(\(.*\) -> .*)$", text, re.MULTILINE)]
    count = len(wanted)
    assert any(takes[:count] == wanted and all(free[count:]) and gives == returned for takes, free, gives in overloads), text


def test_values_in_the_bindings(bindings):
    made = fake(int(bindings["version"].split(".")[0]))
    assert vars(made).keys() - {"__version__"} <= bindings["members"].keys()
    assert bindings["strongly_typed"] == made.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert bindings["dims"] == [1, 3, 8]


@pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU and tensorrt")
@pytest.mark.parametrize(("precision", "most"), [("fp32", 0.05), ("fp16", 0.05), ("int8", 0.2)])
def test_the_true_instance(sam, tmp_path, precision, most):
    calibration = [draw(90 + i, 120 - i) for i in range(8)]
    thresholds = Thresholds(0, 0, -10) if precision == "int8" else Thresholds(0.9, 0.3, -10)
    given = {"runtime": "tensorrt", "precision": precision, "thresholds": thresholds, "calibration": calibration}
    export(sam, tmp_path / "a", [draw()], **given)
    exact, plan = Predictor(sam), Predictor(tmp_path / "a")
    for predictor in (exact, plan):
        predictor.set_image(draw())
    features = exact.get_image_embedding()
    assert np.abs(plan.get_image_embedding() - features).mean() < most * np.abs(features).mean()
    if precision != "int8":
        box = np.array([20, 10, 100, 80])
        np.testing.assert_allclose(plan.predict(box=box)[2], exact.predict(box=box)[2], atol=0.5)
