import warnings

import numpy as np
import pytest
import timm
import torch
from segment_anything import sam_model_registry

from groupmix_sam import build_sam_groupmix
from groupmix_sam.distill import load_teacher
from groupmix_sam.errors import InvalidInputError, RuntimeUnavailableError, WeightsError, WeightsNotFoundError
from groupmix_sam.weights import save_weights


def test_mobile_sam(mobile_sam):
    """The features are the encoder's, by the same weights; the hints stand before and after the third stage."""
    teacher, weights = load_teacher(mobile_sam)
    sam = build_sam_groupmix(mobile_sam, encoder="sam_tiny_vit_5m")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = teacher(x)
        torch.testing.assert_close(maps["features"], sam.image_encoder(x))
        torch.testing.assert_close(
            sam.image_encoder.stages[2].blocks(maps["hint_in"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), maps["hint_out"]
        )
    assert {name: m.shape[1] for name, m in maps.items()} == teacher.channels
    assert teacher.image_size is None
    assert "mask_decoder.iou_token.weight" in weights


def test_a_cpu_sees_one_image_at_a_time(mobile_sam):
    """And the maps are those of the batch."""
    teacher, _ = load_teacher(mobile_sam)
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = teacher.encoder(x)
    sizes = []
    teacher.encoder.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    maps = teacher(x)
    assert sizes == [1, 1, 1]
    torch.testing.assert_close(maps["features"], expected)
    assert {name: len(m) for name, m in maps.items()} == dict.fromkeys(teacher.channels, 3)


def test_real_mobile_sam_is_mobile_sams(shared):
    """The real weights, through the mobile_sam package itself."""
    registered = dict(timm.models._registry._model_entrypoints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mobile_sam import sam_model_registry as mobile_registry
    timm.models._registry._model_entrypoints.update(registered)  # the package overwrites timm's tiny_vit names
    teacher, weights = load_teacher(shared / "weights" / "mobile_sam.safetensors")
    theirs = mobile_registry["vit_t"]()
    theirs.load_state_dict(weights, strict=False)
    theirs.train().eval()  # refreshes the attention biases that it keeps
    x = torch.randn(1, 3, 1024, 1024)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x)["features"], theirs.image_encoder(x), rtol=1e-3, atol=1e-4)


def test_sam_vit_b(tmp_path):
    """segment-anything's own ViT-B, found by its width."""
    sam = sam_model_registry["vit_b"]()
    with torch.no_grad():
        sam.image_encoder.pos_embed.normal_(std=0.02)
    torch.save(sam.state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    teacher, weights = load_teacher(tmp_path / "sam_vit_b_01ec64.pth")
    assert teacher.channels == {"features": 256}
    assert teacher.image_size == 1024
    ours, theirs = teacher.encoder.state_dict(), sam.image_encoder.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())
    assert "mask_decoder.iou_token.weight" in weights


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """A linear encoder, written node by node: each 16 x 16 pixels times a matrix."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, path = onnx.helper, tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    kernel = np.random.default_rng(0).normal(size=(256, 3, 16, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "kernel"], ["features"], strides=[16, 16])],
        "encoder",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [1, 256, 4, 4])],
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, torch.from_numpy(kernel)


def test_onnx(onnx_file):
    """A batch goes through a file for one image, and comes out as by torch's convolution."""
    path, kernel = onnx_file
    teacher, weights = load_teacher(path)
    assert weights == {}
    assert teacher.image_size == 64
    x = torch.randn(2, 3, 64, 64)
    expected = torch.nn.functional.conv2d(x, kernel, stride=16)
    torch.testing.assert_close(teacher(x)["features"], expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(InvalidInputError, match="refuses inputs"):
        teacher(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "NoSuchProvider"])
def test_onnx_providers_that_did_not_load(onnx_file, provider):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime warns of what is an error here
        if provider in __import__("onnxruntime").get_available_providers():
            pytest.skip("this machine has it")
        with pytest.raises(RuntimeUnavailableError, match=provider):
            load_teacher(onnx_file[0], [provider, "CPUExecutionProvider"])


def test_bad_teachers(tmp_path):
    path = save_weights(build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="no teacher"):
        load_teacher(path)
    with pytest.raises(WeightsNotFoundError, match="there is no weights file"):
        load_teacher(tmp_path / "b.onnx")
    (tmp_path / "c.onnx").write_bytes(b"no model")
    pytest.importorskip("onnxruntime")
    with pytest.raises(RuntimeUnavailableError, match=r"does not load .*c\.onnx"):
        load_teacher(tmp_path / "c.onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_engine_without_a_gpu_is_refused_before_tensorrt_is_imported(tmp_path):
    (tmp_path / "d.engine").write_bytes(b"an engine")
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver"):
        load_teacher(tmp_path / "d.engine")
