"""Exported folders against the Sam in PyTorch, in both runtimes, and what must not be written."""

import json
import pickle
import shutil
import subprocess
import sys
import weakref
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
import openvino
import psutil
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.cli import app
from groupmix_sam.errors import (
    InvalidInputError,
    MissingExtraError,
    ParityError,
    RuntimeUnavailableError,
    SaveError,
    UnknownNameError,
    WeightsError,
)
from groupmix_sam.evaluate import load_model
from groupmix_sam.images import ImageFile, find_images
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.backends.onnxruntime import OnnxBackend
from groupmix_sam.inference.backends.openvino import OpenvinoBackend
from groupmix_sam.inference.export.convolutions import as_convolutions
from groupmix_sam.inference.export.exporter import export
from groupmix_sam.inference.export.onnx import OPSET, _gelu, holds_in_int8, quantize
from groupmix_sam.inference.export.openvino import _stays_exact, convert
from groupmix_sam.inference.export.parity import Thresholds, check_parity, measure_parity
from groupmix_sam.inference.export.tensorrt import lint
from groupmix_sam.inference.exported_folder import crop_parts
from groupmix_sam.inference.fused_encoder import fuse_encoder
from groupmix_sam.inference.model import OUTSIDE, torch_model
from groupmix_sam.live import PartialPredictor
from groupmix_sam.masks import mask_iou

from ...release import ALL
from ..conftest import draw

# Untrained masks are full of edges, along which the last bit decides.
LOOSE = Thresholds(0.95, 0.5, pred_iou_thresh=-10)


@pytest.fixture(scope="module")
def exported(sam, tmp_path_factory):
    """An ONNX folder, with an encoder for any number of images; made once, as tracing takes seconds."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    export(sam, folder, [draw(), draw(60, 200)], dynamic_batch=True, thresholds=LOOSE)
    return folder


@pytest.fixture
def quick(exported, monkeypatch):
    """Let export() take the graphs that are there."""

    def copy(sam, folder, *others):
        for path in exported.glob("*.onnx"):
            shutil.copy(path, folder)

    monkeypatch.setattr(sys.modules["groupmix_sam.inference.export.exporter"], "write_graphs", copy)


def same_masks(got, expected, images, atol):
    for image in images:
        got.set_image(image)
        expected.set_image(image)
        error = np.abs(got.get_image_embedding() - expected.get_image_embedding()).max()
        assert error < atol * np.abs(expected.get_image_embedding()).max()
        boxes = np.array([[3, 5, image.shape[1] - 9, image.shape[0] - 7], [10, 10, 40, 45]])
        for boxes_, points in ((boxes, None), (None, boxes[:, None, :2]), (boxes[:1], boxes[:1, None, :2] + 7)):
            labels = None if points is None else np.ones(points.shape[:2])
            a, b = (p.predict_prompts(points, labels, boxes_) for p in (got, expected))
            np.testing.assert_allclose(a[1], b[1], atol=10 * atol)
            np.testing.assert_allclose(a[2], b[2], atol=10 * atol * np.abs(b[2]).max())
            (mask, score), (other, other_score) = (p.predict_single_mask(points, labels, boxes_) for p in (got, expected))
            np.testing.assert_allclose(score, other_score, atol=10 * atol)
            assert (mask == other).mean() > 0.99
            earlier = b[2][:, :1]
            for given in ((points, labels, boxes_), (None, None, None)):
                a, b = (p.predict_prompts(*given, earlier) for p in (got, expected))
                np.testing.assert_allclose(a[2], b[2], atol=10 * atol * np.abs(b[2]).max())


def test_onnx_runtime_gives_the_same(sam, exported):
    same_masks(Predictor.from_pretrained(exported), Predictor(sam), [draw(), draw(31, 200)], atol=1e-4)


@pytest.mark.release
@pytest.mark.skipif(not ALL, reason="it traces for 30 s: make test-all runs it")
def test_a_frame_size_leaves_out_the_padding(sam, tmp_path):
    folder = tmp_path / "frames"
    export(sam, folder, [draw(120, 240)], runtime="openvino", frame_size=(1280, 640), thresholds=LOOSE)
    got = Predictor.from_pretrained(folder)
    same_masks(got, Predictor(sam, pad=False), [draw(120, 240), draw(640, 1280)], atol=1e-4)
    assert got.model.input_size == (128, 256)
    assert got.model.encoder(torch.zeros(1, 3, 128, 256))[0].shape == (1, 256, 8, 16)
    got.set_image(draw(100, 240))  # flatter ones fit, with padding
    with pytest.raises(InvalidInputError, match=r"120 x 90 pixels does not fit.*of the shape of 256 x 128: export it for this"):
        got.set_image(draw())


def test_what_is_traced_for_a_frame_size(sam, tmp_path, monkeypatch):
    """Of a side of 256, in whole steps of 16; a square without one."""
    traced = []

    def stop(_sam, _folder, _dtype, _dynamic_batch, input_size):
        traced.append(input_size)
        raise InvalidInputError("stop")

    monkeypatch.setattr(sys.modules["groupmix_sam.inference.export.exporter"], "write_graphs", stop)
    for size in ((1280, 720), (640, 480), (720, 1280), None):
        with pytest.raises(InvalidInputError, match="stop"):
            export(sam, tmp_path / "a", [draw()], frame_size=size)
    assert traced == [(144, 256), (192, 256), (256, 144), (256, 256)]


def test_a_folder_for_a_frame_size_refuses_other_shapes(sam, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "frames")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "input_size": [128, 256]}))
    predictor = Predictor.from_pretrained(folder)
    assert predictor.preprocess(draw(100, 240)).shape == (3, 128, 256)
    with pytest.raises(InvalidInputError, match=r"120 x 90 pixels does not fit.*of the shape of 256 x 128: export it for this"):
        predictor.set_image(draw())


def test_frame_sizes_that_cannot_be_used(sam, tmp_path):
    for size in ((0, 720), (1280,)):
        with pytest.raises(InvalidInputError, match=r"frame_size is \(.*give a width and a height in pixels"):
            export(sam, tmp_path / "a", [draw()], frame_size=size)
    other = build_sam_groupmix(None, encoder="sam_resnet18", image_size=64)
    with pytest.raises(InvalidInputError, match="takes a square alone: leave out frame_size"):
        export(other, tmp_path / "a", [draw()], frame_size=(1280, 720))


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_onnx_runtime_takes_gelu_for_one_operation(exported, tmp_path, name):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / name)
    onnxruntime.InferenceSession(exported / name, options, providers=["CPUExecutionProvider"])
    written, run = ({node.op_type for node in onnx.load(folder / name).graph.node} for folder in (exported, tmp_path))
    assert "Erf" in written
    assert "Erf" not in run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_pytorchs(dtype, approximate):
    module, x = nn.GELU(approximate).eval(), torch.linspace(-6, 6, 1001, dtype=dtype)
    table = {torch.ops.aten.gelu.default: _gelu}
    graph = torch.onnx.export(module, (x,), dynamo=True, opset_version=OPSET, custom_translation_table=table, verbose=False)
    session = onnxruntime.InferenceSession(graph.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(got, module(x).numpy(), atol=1e-6 if dtype is torch.float32 else 2e-3)


def test_the_evaluator_takes_an_exported_folder(exported, tmp_path):
    model = load_model(exported)
    assert (model.name, model.image_size) == ("onnx", Predictor.from_pretrained(exported).image_size)
    scores = []
    for predictor in (model.predictor, Predictor.from_pretrained(exported)):
        predictor.set_image(draw())
        scores.append(predictor.predict(box=np.array([3, 5, 60, 50]))[1])
    np.testing.assert_array_equal(*scores)
    with pytest.raises(InvalidInputError, match="resizes by itself"):
        load_model(exported, resize="nanosam")
    other = shutil.copytree(exported, tmp_path / "onnx")
    assert load_model(other).label == model.label
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "precision": "int8"}))
    assert load_model(other).label != model.label, "of the same weights, but another export"


def test_openvino_gives_the_same(sam, exported, quick, tmp_path):
    folder = tmp_path / "line 1, camera 2"
    export(sam, folder, [draw()], runtime="openvino", thresholds=LOOSE)
    assert not list(folder.glob("*.onnx"))
    same_masks(Predictor.from_pretrained(folder), Predictor(sam), [draw()], atol=1e-3)
    with pytest.raises(RuntimeUnavailableError, match="its devices are CPU"):
        Predictor.from_pretrained(folder, device="GPU")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precision_in_openvino(sam, quick, tmp_path, precision):
    calibration = [draw(90 + i, 120 - i) for i in range(8)] if precision == "int8" else []
    folder = tmp_path / precision
    export(
        sam,
        folder,
        [draw()],
        runtime="openvino",
        precision=precision,
        thresholds=Thresholds(0, 0, -10),
        calibration=calibration,
        dynamic_batch=True,
    )
    low, exact = Predictor.from_pretrained(folder), Predictor(sam)
    low.set_image(draw())
    exact.set_image(draw())
    error = np.abs(low.get_image_embedding() - exact.get_image_embedding()).mean() / np.abs(exact.get_image_embedding()).mean()
    assert 1e-6 < error < 0.2
    assert ("FakeQuantize" in (folder / "encoder.xml").read_text()) == (precision == "int8")
    assert "FakeQuantize" not in (folder / "decoder.xml").read_text()


def onnx_low(folder, name="encoder.onnx"):
    """Return the encoder's nodes whose second factor is in INT8."""
    nodes = onnx.load(folder / name).graph.node
    low = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    return [node for node in nodes if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in low]


def attribute(node, name):
    return next(onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def openvino_low(folder):
    """Return the types of the encoder's operations with an input in INT8."""
    edges, types = [], {}
    for element in ElementTree.parse(folder / "encoder.xml").iter():
        if element.tag == "layer":
            types[element.get("id")] = element.get("type")
        elif element.tag == "edge":
            edges.append((element.get("from-layer"), element.get("to-layer")))
    return [types[end] for start, end in edges if types[start] == "FakeQuantize"]


def test_int8_in_onnx_runtime(sam, exported, tmp_path):
    """The third stage's projections and MLPs are in INT8, and nothing else is."""
    folder = tmp_path / "int8"
    export(
        sam,
        folder,
        [draw()],
        precision="int8",
        thresholds=Thresholds(0, 0, -10),
        calibration=[draw(90 + i, 120 - i) for i in range(8)],
        dynamic_batch=True,
        graphs=exported,
    )
    low, exact = Predictor.from_pretrained(folder), Predictor(sam)
    low.set_image(draw())
    exact.set_image(draw())
    error = np.abs(low.get_image_embedding() - exact.get_image_embedding()).mean() / np.abs(exact.get_image_embedding()).mean()
    assert 1e-4 < error < 0.2
    nodes = onnx.load(folder / "encoder.onnx").graph.node
    low_nodes = onnx_low(folder)
    assert {node.op_type for node in low_nodes} == {"Conv"}
    # The projection and the MLP's two, of each block of the third stage.
    third = len(sam.image_encoder.stages[2].blocks)
    assert len(low_nodes) == 3 * third
    assert all(attribute(node, "group") == 1 and attribute(node, "kernel_shape") == [1, 1] for node in low_nodes)
    added = {node.op_type for node in nodes} - {node.op_type for node in onnx.load(exported / "encoder.onnx").graph.node}
    assert added <= {"QuantizeLinear", "DequantizeLinear", "HardSigmoid"}  # the compilers' lists have them: test_edge_chips.py
    # Nothing else is quantized, not the attention's products either.
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) <= 6 * third
    assert not any(node.op_type == "QuantizeLinear" for node in onnx.load(folder / "decoder.onnx").graph.node)


def test_what_holds_in_int8():
    """Of each of the third stage's eight blocks the projection and the MLP's two, and not the means of its LayerNorm."""
    encoder = as_convolutions(fuse_encoder(timm.create_model("gmf_sam_2282")))
    found = [name for name in (f"encoder.{key}" for key in encoder.state_dict()) if holds_in_int8(name)]
    assert found == [f"encoder.stages.2.{i}.{name}.weight" for i in range(1, 9) for name in ("proj", "mlp.1", "mlp.3")]


def test_int8_for_tensorrt(sam, exported, monkeypatch, tmp_path):
    """What TensorRT is given has nothing that it refuses, unlike what ONNX Runtime is, and its features are as near."""

    def build(folder, timing_cache):
        shutil.copy(folder / "encoder.onnx", tmp_path)
        raise RuntimeUnavailableError("there is no GPU")

    monkeypatch.setattr(sys.modules["groupmix_sam.inference.export.exporter"], "import_tensorrt", lambda: None)
    monkeypatch.setattr("groupmix_sam.inference.export.tensorrt.build_plans", build)
    calibration = [draw(90 + i, 120 - i) for i in range(8)]
    with pytest.raises(RuntimeUnavailableError, match="no GPU"):
        export(sam, tmp_path / "a", [draw()], runtime="tensorrt", precision="int8", calibration=calibration, graphs=exported)
    assert lint(tmp_path / "encoder.onnx") == []
    predictor = Predictor(sam)
    images = predictor.preprocess(draw())[None]
    predictor.set_image(draw())
    features = predictor.get_image_embedding()
    errors = []
    for path in (tmp_path / "encoder.onnx", tmp_path / "other.onnx"):
        if not path.exists():
            shutil.copy(exported / "encoder.onnx", path)
            quantize(path, (predictor.preprocess(image)[None] for image in calibration), products_only=True)
        got = OnnxBackend(path)(torch.from_numpy(images))[0].numpy()
        errors.append(np.abs(got - features).mean() / np.abs(features).mean())
    assert 1e-4 < errors[0] < 1.5 * errors[1]
    assert len(onnx_low(tmp_path, "encoder.onnx")) == len(onnx_low(tmp_path, "other.onnx")) > 0
    assert any("zero point" in fault for fault in lint(tmp_path / "other.onnx"))


@pytest.mark.parametrize("backend", [OnnxBackend, OpenvinoBackend])
def test_windows(sam, exported, backend):
    """An export of one size encodes windows of all sizes as PyTorch does, and so does a `PartialPredictor`."""
    encoder = backend(exported / "encoder.onnx")
    for size in ((128, 192), (64, 80)):
        pixels = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = sam.image_encoder(pixels)
        torch.testing.assert_close(encoder.windows(pixels)[0], expected, rtol=0, atol=1e-3)
    plain = torch_model(sam)
    predictors = [PartialPredictor(Predictor(replace(plain, encoder=runtime))) for runtime in (plain.encoder, encoder)]
    still = np.full((192, 256, 3), 90, np.uint8)
    moved = still.copy()
    moved[:8, :8] = 250
    for predictor in predictors:
        predictor.set_image(still)
        predictor.set_image(moved)
        assert predictor.share == 0.25, "128 x 128 of 256 x 256"
    np.testing.assert_allclose(*(predictor.get_image_embedding() for predictor in predictors), atol=1e-3)
    with pytest.raises(InvalidInputError, match="no window"):
        backend(exported / "decoder.onnx").windows  # noqa: B018


@pytest.mark.parametrize("backend", [OnnxBackend, OpenvinoBackend])
def test_a_part_of_the_grid(fast_graphs, tmp_path, backend):
    """The decoder for some cells gives what PyTorch's does of them, wherever they are and however many."""
    for name in ("masks.onnx", "image.onnx", "decoder.onnx"):
        shutil.copy(fast_graphs / name, tmp_path)
    if backend is OpenvinoBackend:
        convert(tmp_path, "fp32", [])
    suffix = ".xml" if backend is OpenvinoBackend else ".onnx"
    parts = [backend(tmp_path / f"{name}{suffix}") for name in ("masks", "image", "decoder")]
    draw = torch.Generator().manual_seed(0)
    features, low = 0.1 * torch.randn(1, 256, 64, 64, generator=draw), 5 * torch.randn(1, 1, 256, 256, generator=draw)
    prompt = torch.tensor([[[330.0, 40.0], [440.0, 90.0]]]), torch.tensor([[2.0, 3.0]])
    model = torch_model(build_sam_groupmix("fast"))
    for place in ((slice(4, 12), slice(40, 56)), (slice(0, 8), slice(39, 55)), (slice(3, 17), slice(44, 64))):
        exact, got = (
            decode(*image(features + masks(low)[0]), *prompt)
            for masks, image, decode in (model.crop(*place), crop_parts(parts, (64, 64), *place))
        )
        torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-2)
        rows, columns = (side.stop - side.start for side in place)
        assert (got[0] != OUTSIDE).float().mean() == rows * columns / 64**2


def test_what_stays_exact_in_openvino(exported):
    """All but the 1x1 convolutions of patch embeddings, of q, k and v, of the fifth segment, of projections and of MLPs."""
    weights = {
        op.input_value(1).get_node().get_friendly_name(): _stays_exact(op)
        for op in openvino.convert_model(exported / "encoder.onnx").get_ops()
        if op.get_type_name() == "Convolution" and op.input_value(1).get_shape()[0] > 1
    }
    assert len(weights) > 80
    gathered = [f"segments.{i}.gather.0" for i in (1, 2, 3)]
    low = ["0.1", *(f"1.{part}" for part in (*gathered, "segments.4.0", "segments.4.2", "proj", "mlp.1", "mlp.3"))]
    expected = {f"encoder.stages.{stage}.{part}.weight" for stage in range(4) for part in low}
    assert {name for name, exact in weights.items() if not exact} == expected


@pytest.mark.release
@pytest.mark.skipif(not ALL, reason="it takes a minute: make test-all runs it")
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("encoder", ["gmf_sam_test", "sam_resnet18"])
def test_all_convolutions_are_in_int8_of_others_than_groupmixformer(exported, tmp_path, runtime, encoder):
    """The graphs are the same ones, and of no matter."""
    export(
        build_sam_groupmix(None, encoder=encoder, image_size=256),
        tmp_path / "int8",
        [draw()],
        runtime=runtime,
        precision="int8",
        thresholds=Thresholds(0, 0, -10),
        calibration=[draw(90 + i, 120 - i) for i in range(8)],
        graphs=exported,
    )
    if runtime == "onnx":
        low = onnx_low(tmp_path / "int8")
        depthwise = sum(node.op_type == "Conv" and attribute(node, "group") > 1 for node in low)
    else:
        low = openvino_low(tmp_path / "int8")
        depthwise = low.count("GroupConvolution")
    assert len(low) == 3 if (encoder, runtime) == ("gmf_sam_test", "onnx") else len(low) > 15
    assert (depthwise > 30) == (encoder == "sam_resnet18")
    assert (depthwise == 0) == (encoder == "gmf_sam_test")


def test_what_a_folder_holds(sam, exported):
    config, parity = (json.loads((exported / name).read_text()) for name in ("config.json", "parity.json"))
    assert {path.name for path in exported.iterdir()} == {*config["files"], "config.json", "parity.json"}
    assert config["image_size"] == 256
    assert config["model_hash"] == Predictor(sam).model_hash
    assert config["parity"]["mean_iou"] == parity["mean_iou"] == pytest.approx(np.mean([r["iou"] for r in parity["each"]]))
    assert config["parity"]["min_iou"] == min(r["iou"] for r in parity["each"]) > 0.5
    np.testing.assert_allclose(config["mean"], [123.675, 116.28, 103.53], rtol=1e-6)
    for name in config["files"]:
        model = onnx.load(exported / name)
        onnx.checker.check_model(model)
        assert model.opset_import[0].version >= 17
        # No shape goes in, and nothing that TensorRT refuses.
        assert {value.type.tensor_type.elem_type for value in model.graph.input} == {onnx.TensorProto.FLOAT}
        assert not {"OneHot", "NonZero", "If", "Loop"} & {node.op_type for node in model.graph.node}


def test_images_in_a_batch(exported):
    predictor = Predictor.from_pretrained(exported)
    predictor.set_image_batch([draw(), draw(60, 200), draw(9, 9)], batch_size=2)
    together = predictor.get_image_embedding(1)
    predictor.set_image(draw(60, 200))
    np.testing.assert_allclose(together, predictor.get_image_embedding(), atol=1e-4 * np.abs(together).max())


def test_a_copy_opens_the_folder_again(exported):
    """As a worker process that is spawned does; a runtime's session cannot be pickled."""
    predictor = Predictor.from_pretrained(exported, threads=1)
    predictor.set_image(draw())
    box = np.array([20, 10, 100, 80])
    for other in (pickle.loads(pickle.dumps(predictor)), deepcopy(predictor)):
        assert not other.is_image_set
        other.set_image(draw())
        np.testing.assert_array_equal(other.predict(box=box)[0], predictor.predict(box=box)[0])


def test_a_folder_keeps_to_the_rule_of_threads(exported, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for threads, expected in ((None, 3), (2, 2)):
        model = Predictor.from_pretrained(exported, threads=threads).model
        for part in (model.encoder, model.image, model.masks, model.decoder):
            assert part.session.get_session_options().intra_op_num_threads == expected


def test_embeddings_travel_between_runtimes(sam, exported, tmp_path):
    predictor = Predictor(sam)
    predictor.set_image(draw())
    other = Predictor.from_pretrained(exported)
    other.load_embedding(predictor.save_embedding(tmp_path / "a.safetensors"))
    box = np.array([20, 10, 100, 80])
    np.testing.assert_allclose(other.predict(box=box)[2], predictor.predict(box=box)[2], atol=1e-2)


def test_masks_that_do_not_hold_are_not_written(sam, quick, tmp_path):
    with pytest.raises(ParityError, match="Nothing was written"):
        export(sam, tmp_path / "a", [draw()], thresholds=Thresholds(1.01, 0, -10))
    wrong = sam.image_encoder.neck.proj.weight
    original = wrong.clone()
    try:
        wrong.data.mul_(-1)  # the graphs are another model's
        with pytest.raises(ParityError, match="differ too much"):
            export(sam, tmp_path / "a", [draw()], thresholds=LOOSE)
    finally:
        wrong.data.copy_(original)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("masks", "wrong", "low"), [(50, 1, 0.25), (51, 1, 1.0), (51, 2, 0.25), (100, 1, 1.0), (101, 3, 0.25)])
def test_one_wrong_mask_in_fifty_is_spared(masks, wrong, low):
    """The single wrong one of fifty is the lowest; of 51 it is spared, and a second is not."""

    class Answers:
        """Gives the same squares for each image, and a quarter of them where it is wrong."""

        def __init__(self, wrong):
            self.left, self.wrong = masks, wrong

        def set_image(self, image):
            pass

        def predict_prompts(self, points=None, labels=None, boxes=None, multimask_output=True):
            count = len(boxes if points is None else points)
            found, scores = np.zeros((count, 1, 8, 8), bool), np.full((count, 1), -1.0)
            for i in range(min(count, self.left)):
                scores[i] = 1
                found[i, 0, :4, : 1 if self.left <= self.wrong else 4] = True
                self.left -= 1
            return found, scores, None

    images = [np.zeros((8, 8, 3), np.uint8)] * 5  # of 25 prompts each
    report = measure_parity(Answers(0), Answers(wrong), images, 0.5)
    assert (report["masks"], report["min_iou"], report["low_iou"]) == (masks, 0.25, low)
    report["mean_iou"] = 1.0
    if low < 1:
        with pytest.raises(ParityError, match=r"one in fifty has 0\.2500 or less"):
            check_parity(report, Thresholds())
    else:
        check_parity(report, Thresholds())


@pytest.mark.parametrize(("precision", "judged"), [("fp32", 3), ("int8", 2)])
def test_command(sam, quick, tmp_path, monkeypatch, precision, judged):
    """Of twelve images and two broken ones; for int8 every fifth is judged and the others calibrate."""
    monkeypatch.setattr("groupmix_sam.sam.build_sam_groupmix", lambda *args, **kwargs: sam)
    (tmp_path / "images").mkdir()
    for i in range(10):
        Image.fromarray(draw(90 + i, 120)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (9000, 1)).save(tmp_path / "images" / "narrow.png")
    arguments = ["export", "openvino", str(tmp_path / "a"), "--images", str(tmp_path / "images"), "--precision", precision]
    arguments += ["--image-size", "256", "--min-mean-iou", "0", "--min-iou", "0", "--pred-iou-thresh", "-10", "--count", "3"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert f"masks on {judged} images" in done.stdout
    assert json.loads((tmp_path / "a" / "config.json").read_text())["precision"] == precision
    assert ("narrow.png" in done.output or "too narrow" in done.output) == (precision == "int8")


def test_command_with_too_few_images_for_int8(sam, tmp_path, monkeypatch):
    """Of nine images two are compared and seven would calibrate; ten are enough, and the error says so."""
    monkeypatch.setattr("groupmix_sam.sam.build_sam_groupmix", lambda *args, **kwargs: sam)
    for i in range(9):
        Image.fromarray(draw(90 + i, 120)).save(tmp_path / f"{i}.png")
    done = CliRunner().invoke(
        app, ["export", "openvino", str(tmp_path / "a"), "--images", str(tmp_path), "--precision", "int8"]
    )
    assert isinstance(done.exception, InvalidInputError)
    assert "int8 needs 10 images or more, and has 9" in str(done.exception)


def test_command_with_an_unknown_runtime(tmp_path):
    done = CliRunner().invoke(app, ["export", "openvinoo", str(tmp_path / "a"), "--images", str(tmp_path)])
    assert isinstance(done.exception, UnknownNameError)
    assert str(done.exception) == "there is no runtime 'openvinoo': did you mean openvino?"


def test_images_are_read_one_at_a_time(sam, quick, tmp_path, monkeypatch):
    """Those that are compared and those that int8 calibrates on: no more than two of them are held."""
    for i in range(12):
        Image.fromarray(draw(90 + i, 120)).save(tmp_path / f"{i}.png")
    read, decode = [], ImageFile.decode

    def recorded(file):
        image = decode(file)
        read.append(weakref.ref(image))
        assert sum(held() is not None for held in read) <= 2
        return image

    monkeypatch.setattr(ImageFile, "decode", recorded)
    images = find_images(tmp_path)
    options = {"runtime": "openvino", "precision": "int8", "thresholds": Thresholds(0, 0, -10)}
    export(sam, tmp_path / "a", images[::5], calibration=[image for i, image in enumerate(images) if i % 5], **options)
    assert len(read) >= 12


def test_options_of_other_runtimes_are_refused(sam, exported):
    for kwargs in ({"dtype": torch.float16}, {"image_size": 512}, {"encoder": "gmf_sam_test"}):
        with pytest.raises(InvalidInputError, match="was exported: leave out"):
            Predictor.from_pretrained(exported, **kwargs)
    with pytest.raises(InvalidInputError, match=r"device is 'mps'.*use 'cpu' or 'cuda', or name"):
        Predictor.from_pretrained(exported, device="mps")
    with pytest.raises(InvalidInputError, match="threads is 0"):
        Predictor.from_pretrained(exported, threads=0)


def test_no_space(sam, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["groupmix_sam.inference.export.exporter"], "write_graphs", full)
    with pytest.raises(SaveError, match="the space that is left"):
        export(sam, tmp_path / "a", [draw()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"runtime": "tflite"}, "use onnx with fp32"),
        ({"precision": "int4"}, "there is no 'int4'"),
        ({"images": []}, "no image to compare"),
        ({"runtime": "openvino", "precision": "int8", "calibration": [draw()]}, "1 images are too few"),
        ({"folder": "."}, "is there already"),
        ({"folder": "no/where"}, "make it first"),
    ],
)
def test_bad_arguments(sam, tmp_path, kwargs, match):
    arguments = {"folder": "new", "images": [draw()], **kwargs}
    folder = tmp_path / arguments.pop("folder")
    with pytest.raises(InvalidInputError, match=match):
        export(sam, folder, arguments.pop("images"), **arguments)


@pytest.mark.parametrize("name", ["decoder.onnx", "encoder.onnx"])
def test_damaged_folders(exported, tmp_path, name):
    shutil.copytree(exported, tmp_path / "a")
    path = tmp_path / "a" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=f"{name} is damaged"):
        Predictor.from_pretrained(tmp_path / "a")
    path.unlink()
    with pytest.raises(WeightsError, match=f"lacks {name}"):
        Predictor.from_pretrained(tmp_path / "a")


def test_providers_and_devices_that_are_missing(exported, monkeypatch):
    with pytest.raises(RuntimeUnavailableError, match="has no CUDAExecutionProvider"):
        Predictor.from_pretrained(exported, device="cuda")
    import onnxruntime

    # As onnxruntime-gpu does without a GPU: it lists the provider, and drops it.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(RuntimeUnavailableError, match="did not load"):
        Predictor.from_pretrained(exported, device="CUDAExecutionProvider,CPUExecutionProvider")
    with pytest.raises(RuntimeUnavailableError, match="its devices are CPU"):
        OpenvinoBackend(exported / "image.onnx", "NPU")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'groupmix-sam\[onnx\]'"):
        Predictor.from_pretrained(exported)


def test_other_sizes_are_refused(exported):
    with pytest.raises(InvalidInputError, match=r"refuses inputs of \(1, 256, 9, 9\)"):
        OnnxBackend(exported / "image.onnx")(torch.zeros(1, 256, 9, 9))
    with pytest.raises(InvalidInputError, match=r"refuses inputs of \(1, 256, 9, 9\)"):
        OpenvinoBackend(exported / "image.onnx")(torch.zeros(1, 256, 9, 9))


@pytest.mark.release
@pytest.mark.skipif(not ALL, reason="it takes 20 s: make test-all runs it")
def test_openvinos_memory_stays_flat(exported):
    """Of 256 numbers of prompts and points, for each of which a compiled model keeps 3 MB; its answers stay the same."""
    model = OpenvinoBackend(exported / "decoder.onnx", threads=1)
    image = [torch.randn([side.get_length() for side in value.get_partial_shape()]) for value in list(model.model.inputs)[:4]]

    def ask(prompts, points):
        torch.manual_seed(points)
        return model(*image, 256 * torch.rand(prompts, points, 2), torch.ones(prompts, points))

    first, held = ask(8, 32), []
    shapes = np.random.default_rng(0).permutation([(p, n) for p in range(1, 9) for n in range(1, 33)])
    for prompts, points in shapes.tolist():
        ask(prompts, points)
        held.append(psutil.Process().memory_info().rss >> 20)
    assert held[-1] - held[159] < 60, held[::32]  # oneDNN's own cache is full by then
    for a, b in zip(ask(8, 32), first, strict=True):
        torch.testing.assert_close(a, b)


def test_bf16_without_its_instructions_is_told_of(exported):
    flags = Path("/proc/cpuinfo").read_text().split()
    quick = "avx512_bf16" in flags or "amx_bf16" in flags
    with nullcontext() if quick else pytest.warns(UserWarning, match="no instructions for bf16"):
        OpenvinoBackend(exported / "masks.onnx", precision="bf16")
    OpenvinoBackend(exported / "masks.onnx")


def test_signals_after_openvino(exported):
    """Models that go in the order in which they came leave a thread that can handle signals, as training with workers must."""
    code = """
import signal, sys
from pathlib import Path
from groupmix_sam.inference.backends import OpenvinoBackend

models = [OpenvinoBackend(Path(sys.argv[1])) for _ in range(3)]
while models:
    del models[0]
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code, exported / "masks.onnx"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_not_a_model(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(RuntimeUnavailableError, match="export it again"):
        OnnxBackend(tmp_path / "a.onnx")


def test_iou_by_hand():
    a, b = np.zeros((2, 4, 4), bool)
    assert mask_iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(4 / 12)


def test_parity_of_a_model_with_itself(sam):
    predictor = Predictor(sam)
    report = measure_parity(predictor, predictor, [draw()], pred_iou_thresh=-10)
    assert report["mean_iou"] == report["min_iou"] == 1
    assert report["masks"] == len(report["each"]) > 10
    scores = sorted(record["score"] for record in report["each"])
    gap = int(np.diff(scores).argmax())  # records are rounded
    middle = (scores[gap] + scores[gap + 1]) / 2
    surer = measure_parity(predictor, predictor, [draw()], pred_iou_thresh=middle)
    assert surer["each"] == [record for record in report["each"] if record["score"] >= middle]
    with pytest.raises(InvalidInputError, match="no mask has a predicted IoU"):
        measure_parity(predictor, predictor, [draw()], pred_iou_thresh=99)
