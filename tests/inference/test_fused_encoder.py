import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groupmix_sam import build_sam_groupmix, save_pretrained
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.inference import fuse_encoder

GMF = ("gmf_sam_2282", "gmf_sam_2264", "gmf_sam_33124", "gmf_sam_3312", "gmf_sam_3344", "groupmixformer_mobile", "gmf_sam_test")


def randomize(model):
    """Give every weight, bias and statistic a value of its own: untrained norms would hide a mistake."""
    for p in model.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
    return model.eval()


def error(got, expected):
    return ((got.double() - expected.double()).abs().max() / expected.abs().max()).item()


@torch.inference_mode()
def half_error(make, dtype):
    """Return the error in half precision of what is made of an encoder, over that of the encoder itself.

    65 536 tokens: a softmax over them in fp16 would lose most of its weights.
    """
    model = randomize(timm.create_model("gmf_sam_test"))
    x = torch.randn(1, 3, 1024, 1024)
    expected = model(x)
    made = make(model).to(dtype)(x.to(dtype)).float()
    plain = model.to(dtype)(x.to(dtype)).float()
    return ((made - expected).norm() / (plain - expected).norm()).item()


@pytest.mark.parametrize("name", GMF)
@torch.inference_mode()
def test_same_as_the_encoder(name):
    model = randomize(timm.create_model(name))
    x = torch.randn(2, 3, 64, 96)
    expected = model(x)
    assert expected.std() > 1e-3
    fused = fuse_encoder(model)
    assert error(fused(x), expected) < 1e-4
    # A mere copy would be the same, too.
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.stages.modules())


@torch.inference_mode()
def test_shipped_weights_on_tokens_of_more_than_one_chunk():
    model = timm.create_model("gmf_sam_2282", pretrained=True).eval()
    x = torch.randn(1, 3, 208, 256)
    expected = model(x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused = fuse_encoder(model)
    assert error(fused(x), expected) < 1e-4
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert fused.img_size == model.img_size
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_any_size(batch, rows, columns, seed):
    torch.manual_seed(seed)
    model = randomize(timm.create_model("gmf_sam_test"))
    x = torch.randn(batch, 3, 16 * rows, 16 * columns)
    with torch.inference_mode():
        assert error(fuse_encoder(model)(x), model(x)) < 1e-4


@pytest.mark.parametrize("kwargs", [{"neck": "sam"}, {"qkv_bias": False}, {"num_heads": 4}])
@torch.inference_mode()
def test_options(kwargs):
    model = randomize(timm.create_model("gmf_sam_test", **kwargs))
    x = torch.randn(1, 3, 48, 64)
    assert error(fuse_encoder(model)(x), model(x)) < 1e-4


@torch.inference_mode()
def test_traced_as_eager():
    """What is exported has no loop over chunks of tokens, and gives the same."""
    model = fuse_encoder(randomize(timm.create_model("gmf_sam_test")))
    x = torch.randn(1, 3, 256, 256)
    program = torch.export.export(model, (x,))
    assert error(program.module()(x), model(x)) < 1e-5
    assert sum(node.target is torch.ops.aten.gelu.default for node in program.graph.nodes) == 4


@torch.inference_mode()
def test_folded_where_there_is_fp64(monkeypatch):
    """On the CPU, as MPS has none, and then brought back."""
    moves = []
    for name in ("cpu", "double", "to"):
        original = getattr(torch.nn.Module, name)
        monkeypatch.setattr(
            torch.nn.Module,
            name,
            lambda self, *where, name=name, move=original: moves.append((name, *where)) or move(self, *where),
        )
    model = randomize(timm.create_model("gmf_sam_test"))
    x = torch.randn(1, 3, 64, 64)
    moves.clear()
    fused = fuse_encoder(model)
    assert moves == [("cpu",), ("double",), ("to", torch.device("cpu"), torch.float32)]
    assert error(fused(x), model(x)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    assert half_error(fuse_encoder, dtype) < 1.2


@pytest.mark.parametrize("name", ["sam_resnet18", "resnet18"])
def test_other_encoders_are_refused(name):
    with pytest.raises(InvalidInputError, match="give one of the gmf_sam_ encoders"):
        fuse_encoder(timm.create_model(name))


def test_fused_again_is_a_copy():
    """So that a Sam with a fused encoder can be given to a Predictor, which fuses."""
    encoder = fuse_encoder(timm.create_model("gmf_sam_test"))
    again = fuse_encoder(encoder)
    x = torch.rand(1, 3, 64, 96)
    assert again is not encoder
    assert torch.equal(again(x), encoder(x))


def test_weights_that_nothing_loads_are_not_written(tmp_path):
    sam = build_sam_groupmix(None, encoder="gmf_sam_test")
    sam.image_encoder = fuse_encoder(sam.image_encoder)
    with pytest.raises(InvalidInputError, match="save the Sam that it was fused from"):
        save_pretrained(sam, tmp_path / "weights")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_heads_across_segments_are_refused():
    model = timm.create_model("gmf_sam_test", embed_dims=(30, 30, 30, 30), num_heads=6)
    with pytest.raises(InvalidInputError, match="multiple of 4"):
        fuse_encoder(model)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_recording_gives_the_same():
    """torch.jit.trace, and so the older ONNX exporter, loses what is written in place into views."""
    encoder = randomize(timm.create_model("gmf_sam_test"))
    fused = fuse_encoder(encoder)
    x = torch.randn(1, 3, 512, 512)  # more tokens than go through the MLP at a time
    traced = torch.jit.trace(fused, x, check_trace=False)
    other = torch.randn(1, 3, 512, 512)
    torch.testing.assert_close(traced(other), encoder(other), rtol=1e-3, atol=1e-3)
