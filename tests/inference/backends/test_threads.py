"""Several threads on one model: each gets the answer to its own question."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from groupmix_sam.devices import find_threads
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.backends import OnnxBackend, OpenvinoBackend, TorchBackend

from ..conftest import draw

SIZE = 192
LAYERS = 12
TASKS = Path("/proc/self/task")


def products():
    """Matrices whose product with an input takes long enough for threads to meet."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((SIZE, SIZE)).astype(np.float32) / SIZE**0.5 for _ in range(LAYERS)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    weights = [numpy_helper.from_array(value, f"w{i}") for i, value in enumerate(products())]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(LAYERS)]
    x = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [SIZE, SIZE])
    y = helper.make_tensor_value_info(f"x{LAYERS}", TensorProto.FLOAT, [SIZE, SIZE])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    path = tmp_path_factory.mktemp("threads") / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def in_torch(x):
    for weight in products():
        x = x @ torch.from_numpy(weight)
    return x


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_a_model_that_threads_share(path, backend):
    if backend == "torch":
        model = TorchBackend(in_torch, torch.device("cpu"))
    else:
        model = {"onnx": OnnxBackend, "openvino": OpenvinoBackend}[backend](path)
    exact = np.linalg.multi_dot(products())

    def ask(number):
        x = np.random.default_rng(number).standard_normal((SIZE, SIZE)).astype(np.float32)
        (answer,) = model(torch.from_numpy(x))
        return float(np.abs(answer.numpy() - x @ exact).max())

    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(ask, range(200)))
    assert max(errors) < 1e-2


def working_threads(action, others):
    """Return how many threads of this process but the others spent 20 ms or more on an action."""

    def ticks():
        tasks = [task for task in TASKS.iterdir() if task.name not in others]
        stats = {task.name: (task / "stat").read_text().rsplit(") ", 1)[1].split() for task in tasks}
        return {name: int(fields[11]) + int(fields[12]) for name, fields in stats.items()}

    before = ticks()
    action()
    return sum(now - before.get(name, 0) >= 2 for name, now in ticks().items())


@pytest.mark.skipif(not TASKS.is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", [OnnxBackend, OpenvinoBackend])
def test_threads_that_work(path, kind, monkeypatch):
    """As many as the rule says at most, however many cores there are."""
    x = torch.randn(SIZE, SIZE)
    for told in (1, 2):
        monkeypatch.setenv("OMP_NUM_THREADS", str(told))
        others = {task.name for task in TASKS.iterdir()} - {str(threading.get_native_id())}  # of earlier tests
        model = kind(path, threads=find_threads())
        model(x)
        assert 1 <= working_threads(lambda: [model(x) for _ in range(60)], others) <= told  # noqa: B023


def test_predictors_that_share_a_model(sam):
    """`set_image` is of one predictor: each thread makes its own from the model, which is shared."""
    model = Predictor(sam).model
    images = [np.roll(draw(), 13 * i, axis=1) for i in range(8)]
    box = np.array([20, 10, 100, 80])

    def ask(image):
        predictor = Predictor(model)
        predictor.set_image(image)
        return predictor.predict(box=box)[2]

    alone = [ask(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, images))
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
