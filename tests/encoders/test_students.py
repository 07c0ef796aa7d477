"""The two other families of Table 2, against the implementations that their weights come from."""

import warnings

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from groupmix_sam.encoders import resnet, tiny_vit
from groupmix_sam.errors import InvalidInputError


@pytest.fixture(scope="module")
def mobile_sam():
    """Import mobile_sam, which overwrites five of timm's names, and put timm's own back."""
    import timm.models._registry as registry

    tables = {k: v.copy() for k, v in vars(registry).items() if k.startswith("_model") and hasattr(v, "copy")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("mobile_sam.modeling", reason="needs mobilesam-mirror")
    for name, table in tables.items():
        getattr(registry, name).clear()
        getattr(registry, name).update(table)
    return module


def vit_t(mobile_sam):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mobile_sam.TinyViT(
            img_size=1024,
            num_classes=10,
            embed_dims=[64, 128, 160, 320],
            depths=[2, 2, 6, 2],
            num_heads=[2, 4, 5, 10],
            window_sizes=[7, 7, 14, 7],
            drop_path_rate=0.0,
        )


@torch.no_grad()
def test_tiny_vit_is_mobile_sams(mobile_sam):
    theirs = vit_t(mobile_sam)
    for p in theirs.parameters():
        p.normal_(0, 0.05) if p.ndim > 1 else p.uniform_(0.5, 1)
    theirs.eval()
    ours = timm.create_model("sam_tiny_vit_5m").eval()
    ours.load_state_dict(tiny_vit.checkpoint_filter_fn(theirs.state_dict(), ours))
    x = torch.randn(1, 3, 1024, 1024)  # the only size that theirs takes
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_real_mobile_sam(shared, mobile_sam):
    state_dict = load_file(shared / "weights" / "mobile_sam.safetensors")
    theirs = vit_t(mobile_sam)
    encoder = {k.removeprefix("image_encoder."): v for k, v in state_dict.items() if k.startswith("image_encoder.")}
    theirs.load_state_dict(encoder, strict=False)
    theirs.train().eval()  # its attention biases are cached when eval() is called, so after loading
    ours = timm.create_model("sam_tiny_vit_5m").eval()
    ours.load_state_dict(tiny_vit.checkpoint_filter_fn(state_dict, ours))
    x = torch.randn(1, 3, 1024, 1024)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


class NanoSam(nn.Module):
    """NanoSAM's student, put together from its description with its names."""

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model("resnet18", features_only=True)
        gelu = nn.GELU
        self.up_1 = nn.Sequential(
            *(nn.Conv2d(512, 256, 3, padding=1), gelu(), nn.Conv2d(256, 256, 3, padding=1), gelu()),
            *(nn.Conv2d(256, 256, 3, padding=1), gelu(), nn.ConvTranspose2d(256, 256, 3, 2, 1, 1), gelu()),
        )
        self.proj = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), gelu(), nn.Conv2d(256, 256, 1))
        self.pos_embedding = nn.Parameter(torch.randn(1, 256, 64, 64))

    def forward(self, x):
        return self.proj(self.up_1(self.backbone(x)[-1])) + self.pos_embedding


@torch.no_grad()
def test_resnet_is_nanosams():
    theirs = NanoSam().eval()
    ours = timm.create_model("sam_resnet18").eval()
    ours.load_state_dict(resnet.checkpoint_filter_fn(theirs.state_dict(), ours))
    x = torch.randn(1, 3, 1024, 1024)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_resnets_position_embedding_follows_the_grid():
    """A constant embedding stays that constant on any grid."""
    model = timm.create_model("sam_resnet18").eval()
    x = torch.randn(1, 3, 64, 96)
    model.neck.pos_embed.zero_()
    without = model(x)
    model.neck.pos_embed.fill_(0.5)
    torch.testing.assert_close(model(x) - without, torch.full_like(without, 0.5), rtol=0, atol=1e-5)


def test_resnets_weights_fit_every_size():
    weights = timm.create_model("sam_resnet18", img_size=1024).state_dict()
    smaller = timm.create_model("sam_resnet18", img_size=512)
    smaller.load_state_dict(weights)
    assert torch.equal(smaller.neck.pos_embed, weights["neck.pos_embed"])


@pytest.mark.parametrize("name", ["sam_resnet18", "sam_tiny_vit_5m"])
def test_bad_input(name):
    with pytest.raises(InvalidInputError, match="multiples of 16"):
        timm.create_model(name)(torch.zeros(1, 3, 50, 64))
