import shutil
import sysconfig
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from groupmix_sam.encoders.groupmixformer import checkpoint_filter_fn
from groupmix_sam.errors import InvalidInputError

from . import plain


def tiny(**kwargs):
    return timm.create_model("gmf_sam_test", **kwargs).eval()


def images(batch=2, height=64, width=96, chans=3):
    return torch.randn(batch, chans, height, width)


def randomize_norms(model):
    """Untrained BatchNorm is nearly the identity: give it statistics that would show a mistake."""
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def model():
    return randomize_norms(tiny())


def official(state_dict, **kwargs):
    model = timm.create_model("groupmixformer_mobile", **kwargs).eval()
    model.load_state_dict(checkpoint_filter_fn(state_dict, model))
    return model


def test_official_outputs(shared):
    tensors = load_file(shared / "reference" / "groupmixformer_official.safetensors")
    state_dict = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    model = official(state_dict, depths=(1, 2, 2, 1), num_classes=10)
    with torch.no_grad():
        stages = model.forward_intermediates(tensors["input"], intermediates_only=True)
        logits = model(tensors["input"])
    for i, stage in enumerate(stages, 1):
        torch.testing.assert_close(stage, tensors[f"stage{i}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=1e-5)


def test_plain_implementation_is_the_official_one(shared):
    tensors = load_file(shared / "reference" / "groupmixformer_official.safetensors")
    state_dict = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    _, logits = plain.forward(state_dict, tensors["input"])
    torch.testing.assert_close(logits.float(), tensors["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_same_as_the_plain_implementation(size):
    dims, depths = (20, 40, 40, 60), (1, 2, 1, 1)
    state_dict = plain.random_state_dict(dims, depths)
    model = official(state_dict, embed_dims=dims, depths=depths, num_classes=5)
    x = images(2, *size)
    stages, logits = plain.forward(state_dict, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), logits.float(), rtol=1e-4, atol=1e-4)
        got = model.forward_intermediates(x, intermediates_only=True)
    for a, b in zip(got, stages, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)


def test_sam_encoder_is_the_backbone_with_pooled_middle_stage(model):
    """The neck by hand: stage 2 averaged 2 x 2, concatenated with the last, times the 1x1 weights."""
    x = images()
    with torch.no_grad():
        out, stages = model.forward_intermediates(x)
        mid = stages[1].unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
        expected = torch.einsum("oc,bchw->bohw", model.neck.proj.weight[:, :, 0, 0], torch.cat([mid, stages[-1]], dim=1))
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(x), out)
    assert [s.shape[-1] for s in stages] == [24, 12, 6, 6]


@torch.no_grad()
def test_batch_does_not_matter(model):
    x = images(3)
    together = model(x)
    apart = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_memory_format_does_not_matter(model):
    x = images()
    expected = model(x)
    got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@torch.no_grad()
def test_half_precision(model, dtype, error):
    """65 536 tokens: a softmax over them in fp16 would lose most of its weights."""
    x = images(1, 1024, 1024)
    expected = model(x)
    got = model.to(dtype)(x.to(dtype)).float()
    assert ((got - expected).norm() / expected.norm()).item() < error


class Dtypes(TorchDispatchMode):
    """Records in which dtypes each operation runs."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dtypes = {a.dtype for a in args if isinstance(a, torch.Tensor)}
        self.seen.setdefault(func.overloadpacket.__name__, set()).update(dtypes)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_token_softmax_stays_in_fp32(model, autocast):
    """In a half-precision model and under autocast; the matrix product after it too, the one with q in half precision."""
    x = images()
    if not autocast:
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), Dtypes() as dtypes:
        model(x)
    assert dtypes.seen["_softmax"] == {torch.float32}
    assert dtypes.seen["bmm"] == {torch.float32, torch.bfloat16}
    assert torch.bfloat16 in dtypes.seen["convolution"]


@torch.no_grad()
def test_autocast(model):
    x = images()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(x)
    assert ((got - expected).norm() / expected.norm()).item() < 0.03


@torch.no_grad()
def test_export_with_dynamic_batch(model):
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},)).module()
    for size in (1, 2, 5):
        x = images(size)
        torch.testing.assert_close(exported(x), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_compile(model):
    has_compiler = shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()
    backend = "inductor" if has_compiler else "aot_eager"
    x = images(1)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def test_grad_checkpointing_gives_the_same_gradients(model):
    x = images()
    grads, runs = [], []
    model.stages[0].blocks[0].register_forward_pre_hook(lambda *_: runs.append(enable))
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert runs == [False, True, True], "a checkpointed block runs again in the backward pass"
    assert all(g.abs().sum() > 0 for g in grads[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_training_statistics_are_of_q_k_and_v_together():
    """One step of training: BatchNorm's mean is the one over q, k and v, as in the official code."""
    attn = timm.create_model("gmf_sam_test").stages[0].blocks[0].attn
    x = torch.randn(2, 8, 8, 40)
    attn.train()
    attn.aggregator(attn.qkv(x))
    first_segment = attn.qkv(x).unflatten(-1, (3, 5, 8))[..., 0, :]
    got = attn.aggregator.norm.running_mean[:8]
    torch.testing.assert_close(got, 0.1 * first_segment.mean((0, 1, 2, 3)))


@torch.no_grad()
def test_neck_sam():
    """0.57 M more parameters than the paper's neck, and a last LayerNorm over the channels."""
    concat, sam = (timm.create_model("gmf_sam_2282", neck=neck) for neck in ("concat", "sam"))
    count = [sum(p.numel() for p in m.parameters()) for m in (concat, sam)]
    assert count[1] - count[0] == 160 * 256 + 256 * 256 * 9 + 4 * 256 - 61_440
    out = tiny(neck="sam")(images())
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 4, 6), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("neck", ["concat", "sam"])
def test_stride_8_is_the_last_stage_resized_up(neck, model):
    """Half the stride, the same weights: only what the neck sees differs."""
    other = tiny(neck=neck, embed_stride=8)
    x = images()
    features, stages = other.forward_intermediates(x)
    # Bilinear by 2, worked out on its own: each pixel is 3/4 its nearest neighbour and 1/4 the next, along both axes.
    up = stages[-1]
    for dim in (2, 3):
        first, last = up.narrow(dim, 0, 1), up.narrow(dim, up.shape[dim] - 1, 1)
        padded = torch.cat([first, up, last], dim)
        size = up.shape[dim]
        low = 0.25 * padded.narrow(dim, 0, size) + 0.75 * up
        high = 0.75 * up + 0.25 * padded.narrow(dim, 2, size)
        up = torch.stack([low, high], dim + 1).flatten(dim, dim + 1)
    if neck == "concat":
        expected = torch.einsum("oc,bchw->bohw", other.neck.proj.weight[:, :, 0, 0], torch.cat([stages[1], up], dim=1))
    else:
        expected = other.neck(up)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert features.shape[2:] == (8, 12)


def test_512_has_the_weights_of_1024():
    small, large = timm.create_model("gmf_sam_2282_512"), timm.create_model("gmf_sam_2282")
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in large.state_dict().items()}
    small.load_state_dict(large.state_dict())
    assert (small.img_size, small.embed_stride, large.embed_stride) == (512, 8, 16)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"embed_stride": 4}, "use 8 or 16"),
        ({"img_size": 1000}, "992 or 1008"),
        ({"img_size": (1024, 512)}, "one side"),
        ({"neck": "fpn"}, "'concat' or 'sam'"),
        ({"strides": (1, 2, 2, 2)}, "total stride of 32"),
        ({"depths": ()}, "a width and a stride each"),
        ({"embed_dims": (36, 36, 36, 36)}, "5 segments"),
        ({"num_heads": 2}, "3 or more"),
        ({"num_classes": 5, "global_pool": ""}, "need a pooled feature"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(InvalidInputError, match=match):
        tiny(**kwargs)


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 0), (3, 64, 64)])
def test_bad_input(shape, model):
    with pytest.raises(InvalidInputError, match=r"multiples of 16|B x C x H x W"):
        model(torch.zeros(shape))


def test_custom_arguments_reach_the_model():
    model = timm.create_model("gmf_sam_test", in_chans=1, depths=(1, 1, 2), drop_path_rate=0.2, img_size=64)
    assert model(images(1, 64, 64, chans=1)).shape == (1, 256, 4, 4)
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 2]
    assert model.stages[2].blocks[1].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.img_size == 64


def test_made_on_the_meta_device():
    """timm's way for large models: what a state dict does not hold is filled afterwards."""
    with torch.device("meta"):
        model = timm.create_model("gmf_sam_test")
    reference = tiny()
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(reference.state_dict())
    for m in model.modules():
        if hasattr(m, "init_non_persistent_buffers"):
            m.init_non_persistent_buffers()
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x))
