"""The encoder as it is exported, against the encoder as it trains."""

import pytest
import timm
import torch
from torch import nn

from groupmix_sam.inference import fuse_encoder
from groupmix_sam.inference.export.convolutions import ConvNorm, as_convolutions

from ..test_fused_encoder import error, half_error, randomize


@pytest.mark.parametrize("name", ["gmf_sam_2282", "gmf_sam_3312", "groupmixformer_mobile"])
@torch.inference_mode()
def test_same_as_the_encoder(name):
    model = randomize(timm.create_model(name))
    x = torch.randn(2, 3, 64, 96)
    expected = model(x)
    assert expected.std() > 1e-3
    assert error(as_convolutions(fuse_encoder(model))(x), expected) < 1e-4


@pytest.mark.parametrize("kwargs", [{"neck": "sam"}, {"qkv_bias": False}, {"num_heads": 4}])
@torch.inference_mode()
def test_options(kwargs):
    model = randomize(timm.create_model("gmf_sam_test", **kwargs))
    x = torch.randn(1, 3, 48, 64)
    fused = fuse_encoder(model)
    before = fused(x)
    made = as_convolutions(fused)
    assert error(made(x), model(x)) < 1e-4
    assert torch.equal(fused(x), before)
    assert not any(isinstance(m, nn.Linear) for m in made.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    assert half_error(lambda model: as_convolutions(fuse_encoder(model)), dtype) < 1.2


@pytest.mark.parametrize("affine", [True, False])
def test_norm_of_what_overflows_in_fp16(affine):
    norm = nn.LayerNorm(40, elementwise_affine=affine)
    for p in norm.parameters():
        nn.init.normal_(p)
    x = 3000 * torch.randn(2, 40, 5, 7)
    expected = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ConvNorm(norm)(x), expected, rtol=1e-4, atol=1e-5)
    half = ConvNorm(norm).half()(x.half()).float()
    torch.testing.assert_close(half, expected, rtol=0.01, atol=0.01)
