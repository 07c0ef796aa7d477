import numpy as np
import pytest
import timm
import torch

from groupmix_sam import encoders
from groupmix_sam.distill import Phase, Recipe, check_student, load_teacher
from groupmix_sam.distill.data import Samples, whole_images
from groupmix_sam.distill.student import Student, fit_neck, scale_neck, start_from_teacher
from groupmix_sam.encoders import SamBackbone
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.sam import ENCODERS

from .conftest import GRID, SIZE

HINTS = {"hint_in": 160, "hint_out": 160}


@pytest.mark.parametrize("name", [*ENCODERS, "gmf_sam_test"])
@torch.no_grad()
def test_every_encoder_is_a_student(name):
    """Its features are the encoder's; its hints are what stands at stride 16, on the features' grid, by a Dirac map."""
    encoder = timm.create_model(name).eval()
    check_student(encoder)
    student = Student(encoder, HINTS).eval()
    x = torch.randn(1, 3, 64, 64)
    out = student(x)
    torch.testing.assert_close(out["features"].permute(0, 3, 1, 2), encoder(x))
    stage = next(i for i, info in enumerate(encoder.feature_info) if info["reduction"] == 16)
    expected = encoder.forward_intermediates(x)[1][stage]
    if encoder.embed_stride == 8:
        expected = torch.nn.functional.interpolate(expected, (8, 8), mode="bilinear")
    shown = min(160, expected.shape[1])
    torch.testing.assert_close(out["hint_out"].permute(0, 3, 1, 2)[:, :shown], expected[:, :shown])
    assert ("hint_in" in out) == name.startswith("gmf")
    assert set(Student(encoder, {})(x)) == {"features"}


@torch.no_grad()
def test_a_timm_backbone_is_a_student():
    """Worked out from timm's own maps: means over 2 x 2, as it is, and bilinear from stride 32."""
    encoder = SamBackbone("resnet10t", 64).eval()
    check_student(encoder)
    x = torch.randn(1, 3, 64, 96)
    at_8, at_16, at_32 = (
        timm.create_model("resnet10t", features_only=True).eval().requires_grad_(False).feature_info.channels()[-3:]
    )
    maps = encoder.backbone(x)[-3:]
    assert [m.shape[1] for m in maps] == [at_8, at_16, at_32]
    joined = torch.cat(
        [
            torch.nn.functional.avg_pool2d(maps[0], 2),
            maps[1],
            torch.nn.functional.interpolate(maps[2], scale_factor=2, mode="bilinear"),
        ],
        dim=1,
    )
    expected = torch.einsum("oi,bihw->bhwo", encoder.neck.proj.weight[:, :, 0, 0], joined)
    out = Student(encoder, HINTS)(x)
    torch.testing.assert_close(out["features"], expected, rtol=1e-4, atol=1e-4)
    assert set(out) == {"features", "hint_out"}


@pytest.mark.parametrize(("name", "block"), [("resnet10t", "layer2"), ("test_vit", "model.blocks.2")])
def test_a_timm_backbone_checkpoints_its_activations(name, block):
    """Of convolutions, and of transformers, which timm wraps in another way."""
    encoder = SamBackbone(name, 64)
    x = torch.randn(2, 3, 64, 64)
    gradients, runs = [], []
    encoder.backbone.get_submodule(block).register_forward_pre_hook(lambda *_: runs.append(enable))
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        encoder(x).square().mean().backward()
        gradients.append({key: p.grad.clone() for key, p in encoder.named_parameters() if p.grad is not None})
    assert runs == [False, True, True], "a checkpointed block runs again in the backward pass"
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


@pytest.mark.parametrize("encoder", ["groupmixformer_mobile", "resnet18"])
def test_models_without_sams_features(encoder):
    with pytest.raises(InvalidInputError, match="no SAM features"):
        check_student(timm.create_model(encoder))
    with pytest.raises(InvalidInputError, match="no SAM features"):
        check_student(timm.create_model("gmf_sam_test", num_classes=2))


def test_neck_is_fitted_by_least_squares(cached):
    """What the ridge leaves of the error is what numpy's least squares leaves."""
    encoder = timm.create_model("gmf_sam_test").eval()
    samples = Samples(cached, Recipe(phases=(Phase(1.0, 64, 1),)), 0, GRID)
    batches = [samples[i] for i in range(6)]
    assert fit_neck(encoder, batches, ridge=1e-9)
    seen = []
    encoder.neck.proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        out = torch.cat([encoder(b["input"]).permute(0, 2, 3, 1).reshape(-1, 256) for b in batches])
    x = torch.cat([s.permute(0, 2, 3, 1).reshape(-1, 80) for s in seen]).double().numpy()
    y = torch.cat([b["features"].reshape(-1, 256) for b in batches]).double().numpy()
    best = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.square(out.numpy() - y).mean() == pytest.approx(np.square(best - y).mean(), rel=0.05)
    assert not fit_neck(timm.create_model("sam_resnet18"), batches, ridge=1e-9)


def test_fitting_the_neck_leaves_out_the_padding(cached):
    """What the features are in the padding makes no difference."""
    encoder = timm.create_model("gmf_sam_test").eval()
    image = next(whole_images(cached, GRID))
    rows = int(image["valid"][0, :, 0].sum())
    assert rows < SIZE // 16
    fitted = []
    for padding in (0.0, 1e3):

        def fill(_module, args, padding=padding):
            padded = torch.full_like(args[0][:, :, rows:], padding)
            return (torch.cat([args[0][:, :, :rows], padded], dim=2),)

        handle = encoder.neck.proj.register_forward_pre_hook(fill)
        fit_neck(encoder, [image], ridge=1e-3)
        handle.remove()
        fitted.append(encoder.neck.proj.weight.detach().clone())
    torch.testing.assert_close(*fitted)


@torch.no_grad()
def test_sams_neck_starts_at_the_teachers_mean_and_deviation(cached):
    encoder = timm.create_model("gmf_sam_test", neck="sam").eval()
    batches = list(whole_images(cached, GRID))
    assert scale_neck(encoder, batches)
    ours = torch.cat([encoder(b["input"]).permute(0, 2, 3, 1)[b["valid"]] for b in batches])
    theirs = torch.cat([b["features"][b["valid"]] for b in batches]).float()
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=1e-3, atol=1e-4)
    assert not scale_neck(timm.create_model("gmf_sam_test"), batches)


def test_start_from_teacher(mobile_sam):
    """MobileSAM's MLP and local convolution, run by MobileSAM's rules, give what the student's block gives."""
    _, weights = load_teacher(mobile_sam)
    g = torch.Generator().manual_seed(0)
    for key, value in weights.items():  # untrained, its norms and statistics would all be alike
        if "layers.2" in key and value.is_floating_point():
            weights[key] = value + 0.1 * torch.rand(value.shape, generator=g)
    encoder = timm.create_model("gmf_sam_2282").eval()
    assert start_from_teacher(encoder, weights) == 6
    teacher = timm.create_model("sam_tiny_vit_5m").eval()
    teacher.load_state_dict(encoders.tiny_vit.checkpoint_filter_fn(weights, teacher))
    x = torch.randn(2, 4, 4, 160)
    with torch.no_grad():
        for ours, theirs in zip(encoder.stages[2].blocks[:6], teacher.stages[2].blocks, strict=True):
            torch.testing.assert_close(ours.mlp(ours.norm2(x)), theirs.mlp(x), rtol=1e-4, atol=1e-4)
            image = x.permute(0, 3, 1, 2)
            torch.testing.assert_close(image + ours.cpe(image), theirs.local_conv(image), rtol=1e-4, atol=1e-4)
    assert start_from_teacher(timm.create_model("gmf_sam_test"), weights) == 0
    assert start_from_teacher(timm.create_model("sam_resnet18"), weights) == 0
