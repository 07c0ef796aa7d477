"""Tensors stay on their device between prompts: copies there and back are counted, on a device that is not there."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils._python_dispatch import TorchDispatchMode

from groupmix_sam.inference import Predictor
from groupmix_sam.inference.backends import OnnxBackend
from groupmix_sam.inference.mask_resize import neighbours, resize_blocks, resize_on_device

from ..conftest import draw


class FakeGpu(TorchDispatchMode):
    """The shapes that are copied to PyTorch's meta device, which stands for a GPU, and back, whence come ones.

    What is on the meta device has no values: to read one without a copy is an error, as it is on a GPU.
    """

    def __init__(self):
        super().__init__()
        self.up, self.down = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        target = kwargs.get("device") or next((arg for arg in args if isinstance(arg, torch.device)), None)
        if source is not None and target is not None and target.type != source.device.type:
            if target.type == "cpu":
                self.down.append(tuple(source.shape))
                return torch.ones(source.shape, dtype=source.dtype)
            self.up.append(tuple(source.shape))
        return func(*args, **kwargs)

    def taken(self):
        """Return the copies since the last call."""
        up, down, self.up, self.down = self.up, self.down, [], []
        return up, down


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # which the meta device lacks
    return FakeGpu()


POINT = {"point_coords": np.array([[60, 45]]), "point_labels": np.array([1])}


def test_copies_of_an_image_and_its_prompts(sam, gpu):
    """The image goes up once, then points, and for one mask its cells; what comes back are masks, scores and logits."""
    predictor = Predictor(sam, device="meta")
    with gpu:
        predictor.set_image(draw())
        assert gpu.taken() == ([(1, 3, 256, 256)], [])
        for _ in range(3):
            masks, scores, logits = predictor.predict(**POINT)
            assert gpu.taken() == ([(1, 2, 2), (1, 2)], [(1, 3, 90, 120), (1, 3), (1, 3, 64, 64)])
        assert (masks.dtype, scores.dtype, logits.dtype) == (bool, np.float32, np.float32)
        predictor.predict(mask_input=logits[:1])
        assert gpu.taken() == ([(1, 1, 64, 64), (1, 0, 2), (1, 0)], [(1, 3, 90, 120), (1, 3), (1, 3, 64, 64)])
        boxes = np.array([[20, 10, 100, 80], [5, 5, 60, 60]])
        masks, scores = predictor.predict_single_mask(boxes=boxes)
        assert gpu.taken() == ([(2, 2, 2), (2, 2), (2,), (13,), (16,)], [(2, 90, 120), (2,)])
        predictor.get_image_embedding()
        assert gpu.taken() == ([], [(1, 256, 16, 16)])


def test_copies_of_kept_embeddings(sam, gpu, tmp_path):
    here, predictor = Predictor(sam), Predictor(sam, device="meta")
    here.set_image_batch([draw(), draw(60, 80)])
    path = here.save_embedding(tmp_path / "a.safetensors")
    with gpu:
        predictor.load_embedding(path)
        assert gpu.taken() == ([(2, 256, 16, 16)], [])
        predictor.predict(**POINT, index=0)
        assert gpu.taken()[0] == [(1, 2, 2), (1, 2)]
        predictor.set_embedding(here.get_image_embedding(), (90, 120))
        assert gpu.taken() == ([(1, 256, 16, 16)], [])
        predictor.predict(**POINT)
        assert gpu.taken()[0] == [(1, 2, 2), (1, 2)]


@pytest.mark.parametrize("size", [(90, 120), (640, 480), (33, 1000)])
def test_masks_resized_on_a_device_are_those_of_the_cpu(size):
    low = torch.randn(64, 64)
    extents = [64 * side / max(size) for side in size]
    rows, columns = map(neighbours, size, low.shape, extents)
    expected = np.concatenate([part for _, part in resize_blocks(low.numpy(), rows, columns)])
    np.testing.assert_allclose(resize_on_device(low, size, extents).numpy(), expected, atol=1e-4)


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """An ONNX file of y = 2 x, and of z, which is x."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])]
    x, y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, 3]) for name, n in zip("xyz", "aab", strict=True))
    path = tmp_path_factory.mktemp("copies") / "a.onnx"
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y, z]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    onnx.save(model, path)
    return path


def test_onnx_runtime_reads_tensors_where_they_lie(doubled, monkeypatch):
    model = OnnxBackend(doubled)
    bound, io_binding = [], model.session.io_binding

    def recorded():
        binding = io_binding()
        bind_input = binding.bind_input
        binding.bind_input = lambda *args: bound.append(args) or bind_input(*args)
        return binding

    monkeypatch.setattr(model.session, "io_binding", recorded)
    for count in (4, 2):
        x = torch.randn(count, 3)
        y, z = model(x)
        torch.testing.assert_close(y, 2 * x)
        torch.testing.assert_close(z, x)
        assert bound.pop() == ("x", "cpu", 0, np.float32, (count, 3), x.data_ptr())
        (again, _) = model(y)
        assert bound.pop()[-1] == y.data_ptr()
        torch.testing.assert_close(again, 4 * x)
        torch.testing.assert_close(y, 2 * x, msg="the next call has memory of its own")


@pytest.mark.parametrize(
    ("providers", "device_id", "cuda", "device"),
    [
        (["CUDAExecutionProvider"], 0, True, "cuda:0"),
        (["TensorrtExecutionProvider", "CUDAExecutionProvider"], 1, True, "cuda:1"),
        (["CUDAExecutionProvider"], 1, False, "cpu"),
        (["DmlExecutionProvider"], 1, True, "cpu"),
    ],
    ids=["CUDA", "several providers, the second GPU", "a PyTorch without CUDA", "another provider"],
)
def test_where_onnx_runtime_leaves_its_results(monkeypatch, tmp_path, providers, device_id, cuda, device):
    """By a fake of it: a GPU was not there."""
    asked = []

    def session(path, options, providers, provider_options):
        asked.append((providers, provider_options))
        return SimpleNamespace(get_providers=lambda: providers, get_inputs=list, get_outputs=list)

    options = SimpleNamespace(add_session_config_entry=lambda *args: None)
    fake = SimpleNamespace(get_available_providers=lambda: providers, SessionOptions=lambda: options, InferenceSession=session)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert OnnxBackend(tmp_path / "a.onnx", providers, device_id).device == torch.device(device)
    setting = {"device_id": "1"} if device_id else {}
    assert asked == [(providers, [setting] * len(providers))]
