import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groupmix_sam import build_sam_groupmix
from groupmix_sam.inference.fused_decoder import CHUNK, FusedDecoder, ImageTokens


def stock(sam, features, points=None, boxes=None, masks=None):
    """Return all four masks' logits and predicted IoUs from segment-anything's own modules."""
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    return sam.mask_decoder.predict_masks(features, sam.prompt_encoder.get_dense_pe(), sparse, dense)


def same(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def decoder(sam):
    return FusedDecoder(sam)


def features(batch=1, size=16):
    return torch.randn(batch, 256, size, size)


@settings(max_examples=15, deadline=None)
@given(prompts=st.integers(1, 2 * CHUNK + 1), points=st.integers(1, 12), seed=st.integers(0, 999))
def test_points(sam, decoder, prompts, points, seed):
    torch.manual_seed(seed)
    x, coords, labels = features(), 256 * torch.rand(prompts, points, 2), torch.randint(0, 2, (prompts, points)).float()
    expected = stock(sam, x, points=(coords, labels))
    padded = torch.cat([coords, torch.zeros(prompts, 1, 2)], dim=1), torch.cat([labels, -torch.ones(prompts, 1)], dim=1)
    same(decoder(decoder.image(x), *padded), expected)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::torch.jit.TracerWarning")
def test_a_recording_gives_the_same(decoder):
    """For more prompts than it was recorded with, which would be decoded in chunks."""
    image = decoder.image(features())
    points, labels = 256 * torch.rand(2 * CHUNK + 1, 2, 2), torch.tensor([[1.0, -1.0]]).expand(2 * CHUNK + 1, 2)
    function = lambda *x: decoder(ImageTokens(*x[:4]), *x[4:])  # noqa: E731
    traced = torch.jit.trace(function, (*image, points[:2], labels[:2]), check_trace=False)
    same(traced(*image, points, labels), decoder(image, points, labels))


def test_boxes_and_points(sam, decoder):
    x, boxes = features(), torch.tensor([[10.0, 20, 90, 70], [3, 4, 200, 250]])
    coords, labels = torch.tensor([[[60.0, 45]], [[20, 30]]]), torch.tensor([[1.0], [0]])
    corners, kinds = boxes.view(2, 2, 2), torch.tensor([[2.0, 3], [2, 3]])
    image = decoder.image(x)
    same(decoder(image, corners, kinds), stock(sam, x, boxes=boxes))
    both = torch.cat([coords, corners], dim=1), torch.cat([labels, kinds], dim=1)
    same(decoder(image, *both), stock(sam, x, points=(coords, labels), boxes=boxes))


def test_masks_of_an_earlier_round(sam, decoder):
    x, masks, boxes = features(), 5 * torch.randn(1, 1, 64, 64), torch.tensor([[10.0, 20, 90, 70]])
    image = decoder.image(x + decoder.embed_masks(masks))
    same(decoder(image, boxes.view(1, 2, 2), torch.tensor([[2.0, 3]])), stock(sam, x, boxes=boxes, masks=masks))


def test_a_window_of_the_grid(sam, decoder):
    """Of features and positions the stock decoder takes any part."""
    x, masks, boxes = features(), 5 * torch.randn(1, 1, 64, 64), torch.tensor([[60.0, 90, 120, 140]])
    rows, columns = slice(3, 11), slice(2, 14)
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=masks)
    parts = (part[:, :, rows, columns] for part in (x, sam.prompt_encoder.get_dense_pe(), dense))
    here, positions, dense = parts
    expected = sam.mask_decoder.predict_masks(here, positions, sparse, dense)
    part = decoder.crop(rows, columns)
    image = part.image((x + decoder.embed_masks(masks))[:, :, rows, columns])
    same(part(image, boxes.view(1, 2, 2), torch.tensor([[2.0, 3]])), expected)


def test_a_single_mask_of_a_part(sam, decoder):
    """Of the stock decoder's four, for ambiguous prompts the best of three; of its logits, the rows and columns asked for."""
    torch.manual_seed(0)
    prompts = 2 * CHUNK + 1
    x, points = features(), 256 * torch.rand(prompts, 1, 2)
    labels, ambiguous = torch.ones(prompts, 1), (torch.arange(prompts) % 2).float()
    expected, scores = stock(sam, x, points=(points, labels))
    chosen = torch.where(ambiguous > 0, 1 + scores[:, 1:].argmax(dim=1), 0)
    assert len(chosen.unique()) > 1
    padded = torch.cat([points, torch.zeros(prompts, 1, 2)], dim=1), torch.cat([labels, -labels], dim=1)
    got = decoder.single_mask(decoder.image(x), *padded, ambiguous, torch.arange(9.0), torch.arange(2.0, 14.0))
    every = torch.arange(prompts)
    same(got, (expected[every, chosen, :36, 8:56], scores[every, chosen]))


@torch.inference_mode()
def test_shipped_weights_at_another_size():
    sam = build_sam_groupmix(image_size=512)
    decoder = FusedDecoder(sam)
    x = sam.image_encoder(torch.rand(1, 3, 512, 512))
    boxes = torch.tensor([[100.0, 50, 300, 400]])
    expected = stock(sam, x, boxes=boxes)
    assert expected[0].std() > 1
    got = decoder(decoder.image(x), boxes.view(1, 2, 2), torch.tensor([[2.0, 3]]))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-4)
    assert ((got[0] > 0) == (expected[0] > 0)).float().mean() > 0.9999
