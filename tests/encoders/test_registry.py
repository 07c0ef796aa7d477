"""What holds for every encoder: the paper's counts, timm's contract."""

import warnings
from contextlib import nullcontext

import pytest
import timm
import torch
from timm.models import FeatureInfo
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from groupmix_sam.encoders.config import SAM_MEAN, SAM_STD
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.sam import ENCODERS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # thop compares versions by distutils
    import thop

# Table 2 of the paper, in thop's digits.
TABLE_2 = {
    "gmf_sam_2282": (3_577_712, 21_128_085_504),
    "gmf_sam_2264": (3_577_712, 21_128_085_504),
    "gmf_sam_33124": (5_633_240, 32_435_404_800),
    "gmf_sam_3312": (4_306_552, 26_808_090_624),
    "gmf_sam_3344": (3_034_584, 21_407_531_008),
    "sam_resnet18": (14_782_528, 45_623_541_760),
    "sam_tiny_vit_5m": (5_735_616, 36_742_785_024),
}
NAMES = [*ENCODERS, "gmf_sam_test"]


def test_table_2_is_whole():
    assert set(TABLE_2) | {"gmf_sam_2282_512"} == set(ENCODERS)


@pytest.mark.parametrize("name", TABLE_2)
def test_counts_of_the_paper(name, monkeypatch):
    """At the paper's 1024 pixels, on the meta device, which computes nothing and has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    with torch.device("meta"):
        model, x = timm.create_model(name), torch.zeros(1, 3, 1024, 1024)
    macs, params = thop.profile(model, (x,), verbose=False)
    assert (params, macs) == TABLE_2[name]


@pytest.mark.parametrize("name", NAMES)
def test_config(name):
    cfg = timm.create_model(name).pretrained_cfg
    assert cfg["architecture"] == name
    assert (cfg["mean"], cfg["std"]) == (SAM_MEAN, SAM_STD)
    data = timm.data.resolve_model_data_config(timm.create_model(name))
    assert data["mean"] == SAM_MEAN
    assert not cfg.get("hf_hub_id")  # it would promise weights that nobody can download


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_default_cfgs_of_a_sam_encoder(name):
    """timm's test_model_default_cfgs_non_std, on our names."""
    model = timm.create_model(name).eval()
    state_dict = model.state_dict()
    assert model.num_classes == 0
    x = torch.randn(1, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *[64 // model.embed_stride] * 2)
    assert model.forward_head(features, pre_logits=True).shape[1] == model.head_hidden_size
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features)
    assert model.default_cfg["first_conv"] + ".weight" in state_dict
    with_head = timm.create_model(name, num_classes=7).state_dict()
    assert with_head[model.default_cfg["classifier"] + ".weight"].shape == (7, 256)


@torch.no_grad()
def test_default_cfgs_of_the_classifier():
    """timm's test_model_default_cfgs, on our name."""
    name = "groupmixformer_mobile"
    model = timm.create_model(name).eval()
    cfg = model.default_cfg
    state_dict = model.state_dict()
    x = torch.randn(1, 3, 224, 224)
    features = model.forward_features(x)
    pre = model.forward_head(features, pre_logits=True)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    torch.testing.assert_close(pre, features.mean((2, 3)))
    assert model(x).shape == (1, 1000)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pre)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (1, 3)
    assert timm.create_model(name, num_classes=0, global_pool="").eval()(x).shape == features.shape
    for key in ("classifier", "first_conv"):
        assert cfg[key] + ".weight" in state_dict


@pytest.mark.parametrize("name", NAMES)
def test_backward_reaches_every_parameter(name):
    """timm's test_model_backward, on our names."""
    model = timm.create_model(name, num_classes=42).train()
    out = model(torch.randn(2, 3, 64, 64))
    out.mean().backward()
    assert out.shape == (2, 42)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", [*NAMES, "groupmixformer_mobile"])
@torch.no_grad()
def test_features_only(name):
    """The feature maps are the intermediates, in channels, stride and value."""
    whole = timm.create_model(name).eval()
    features = timm.create_model(name, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    features.load_state_dict(_prefixed(whole, features))
    outputs = features(x)
    final, intermediates = whole.forward_intermediates(x)
    torch.testing.assert_close(final, whole.forward_features(x))
    for out, same, info in zip(outputs, intermediates, features.feature_info.get_dicts(), strict=True):
        torch.testing.assert_close(out, same)
        assert (out.shape[1], out.shape[2]) == (info["num_chs"], 64 // info["reduction"])
    last = timm.create_model(name, features_only=True, out_indices=(1,)).eval()
    assert last.feature_info.channels() == FeatureInfo(whole.feature_info, (1,)).channels()
    assert len(last(x)) == 1


def _prefixed(whole, features):
    """Give a features_only wrapper the whole model's weights, by the wrapper's names."""
    state_dict = whole.state_dict()
    return {k: state_dict[k.removeprefix("model.")] for k in features.state_dict()}


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_groups(name):
    """Layers are told apart by depth: the stem learns slowest, the neck fastest, and no parameter is left out."""
    model = timm.create_model(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale.keys() == {id(p) for p in model.parameters()}
    named = dict(model.named_parameters())
    stem = scale[id(named[model.default_cfg["first_conv"] + ".weight"])]
    neck = max(scale[id(p)] for n, p in named.items() if n.startswith("neck."))
    assert stem == min(scale.values())
    assert neck == max(scale.values()) == 1.0
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert all(named[n].ndim > 1 for n in named if id(named[n]) in decayed)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_any_multiple_of_16(name):
    """Odd grids too, through every way to the features."""
    model = timm.create_model(name).eval()
    for height, width in ((48, 80), (16, 16), (112, 32)):
        x = torch.randn(1, 3, height, width)
        features = model(x)
        assert features.shape == (1, 256, height // model.embed_stride, width // model.embed_stride)
        torch.testing.assert_close(model.forward_intermediates(x)[0], features)
        early, (middle,) = model.forward_intermediates(x, indices=[1], stop_early=True)
        torch.testing.assert_close(early, features)
        torch.testing.assert_close(
            model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)[0], middle
        )
    with pytest.raises(InvalidInputError, match="multiples of 16"):
        model.forward_intermediates(torch.zeros(1, 3, 60, 64))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_reset_classifier(name):
    """A pooling of None stays what it was, as in timm."""
    model = timm.create_model(name, global_pool="max").eval()
    features = model(x := torch.randn(1, 3, 64, 64))
    model.reset_classifier(4)
    expected = features.amax((2, 3)) @ model.get_classifier().weight.T + model.get_classifier().bias
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(InvalidInputError, match="need a pooled feature"):
        model.reset_classifier(4, "")


@pytest.mark.parametrize("name", [*NAMES, "groupmixformer_mobile"])
def test_dtype_and_device(name):
    model = timm.create_model(name, dtype=torch.float64, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_position_embedding_does_not_decay():
    model = timm.create_model("sam_resnet18")
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    (kept,) = (g["params"] for g in groups if g["weight_decay"] == 0)
    assert any(p is model.neck.pos_embed for p in kept)


def test_the_classifier_takes_sizes_that_sam_does_not():
    model = timm.create_model("groupmixformer_mobile", img_size=(224, 288), num_classes=3).eval()
    assert model(torch.zeros(1, 3, 230, 199)).shape == (1, 3)


def test_names_are_listed():
    assert set(NAMES) <= set(timm.list_models("*sam_*"))
