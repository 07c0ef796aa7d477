import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from groupmix_sam import build_sam_groupmix
from groupmix_sam.distill.decoder import Decoded, FrozenDecoder
from groupmix_sam.distill.losses import boxes_of, draw_points, mask_boxes, mask_ious, mask_losses, teacher_mask_iou

SIZE = 256


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_sam_groupmix(None, encoder="gmf_sam_test", image_size=SIZE)


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_decoder_says_what_sam_predictor_says(sam, kind):
    """On a square image no resizing comes between the prompts and the decoder."""
    predictor = SamPredictor(sam)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    predictor.set_image(image)
    points, boxes = (
        torch.tensor([[40.0, 60.0], [200.0, 100.0]]),
        torch.tensor([[10.0, 20.0, 90.0, 200.0], [5.0, 5.0, 60.0, 50.0]]),
    )
    with torch.no_grad():
        decoded = FrozenDecoder(sam)(predictor.features, **{kind: {"points": points, "boxes": boxes}[kind]})
        if kind == "points":
            _, scores, logits = predictor.predict_torch(points[:, None], torch.ones(2, 1), multimask_output=True)
            torch.testing.assert_close((decoded.logits[:, 1:], decoded.scores[:, 1:]), (logits, scores))
        else:
            _, scores, logits = predictor.predict_torch(None, None, boxes, multimask_output=False)
            torch.testing.assert_close((decoded.logits[:, :1], decoded.scores[:, :1]), (logits, scores))


def test_boxes_by_hand():
    """The best of the last three masks counts; a mask's pixel is 4 x 4 of the input's; an empty mask has no box."""
    logits = torch.full((2, 4, 16, 16), -1.0)
    logits[0, 0] = 1.0
    logits[0, 2, 3:6, 4:10] = 1.0
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.9, 0.1, 0.8, 0.2]])
    assert boxes_of(Decoded(logits, scores)).tolist() == [[16.0, 12.0, 40.0, 24.0]]
    assert boxes_of(Decoded(logits[1:], scores[1:])).shape == (0, 4)
    assert mask_boxes(logits[:, 2] > 0, 16).tolist() == [[16.0, 12.0, 40.0, 24.0], [0.0, 0.0, 0.0, 0.0]], "0 of an empty one"
    assert boxes_of(Decoded(logits, scores), 8).tolist() == [[8.0, 6.0, 20.0, 12.0]], "2 x 2 at stride 8"


def test_ious_by_hand():
    first, second = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)
    first[0, :2], second[0, 1:3] = True, True
    first[1, 0, 0] = True
    assert mask_ious(first, second).tolist() == pytest.approx([1 / 3, 0.0, 1.0]), "two empty masks are the same"


def test_points_lie_where_the_image_is():
    valid = torch.zeros(8, 8, dtype=torch.bool)
    valid[:3, :5] = True
    points = draw_points(valid, 500, torch.Generator().manual_seed(0))
    assert points.min() >= 0
    assert 64 < points[:, 0].max() < 80
    assert 32 < points[:, 1].max() < 48
    half = draw_points(valid, 500, torch.Generator().manual_seed(0), 8)
    torch.testing.assert_close(half, points / 2)


def test_decoder_knows_its_stride():
    """The decoder of the 512 encoder has the 64 x 64 features of the one at 1024: prompts at half the pixels mean the same."""
    torch.manual_seed(0)
    decoders = []
    for name in ("gmf_sam_2282", "gmf_sam_2282_512"):
        torch.manual_seed(0)
        sam = build_sam_groupmix(None, encoder=name)
        if decoders:
            sam.prompt_encoder.load_state_dict(decoders[0].prompt_encoder.state_dict())
            sam.mask_decoder.load_state_dict(decoders[0].mask_decoder.state_dict())
        decoders.append(FrozenDecoder(sam))
    assert [decoder.stride for decoder in decoders] == [16, 8]
    features = torch.randn(1, 256, 64, 64)
    boxes = torch.tensor([[100.0, 200.0, 500.0, 700.0]])
    with torch.no_grad():
        # SAM shifts a box by half a pixel, which is half as much of the image at 1024
        large, small = decoders[0](features, boxes=boxes), decoders[1](features, boxes=(boxes + 0.5) / 2 - 0.5)
    torch.testing.assert_close(large, small, rtol=1e-4, atol=1e-4)


def test_losses_by_hand():
    """One pixel counts, of probability 1/2 against 3/4: cross-entropy less the teacher's own, dice, and the IoUs' error."""
    valid = torch.zeros(1, 2, dtype=torch.bool)
    valid[0, 0] = True
    student, teacher = torch.zeros(1, 4, 4, 8), torch.full((1, 4, 4, 8), float(np.log(3)))
    teacher[..., 4:] = 50.0
    scores = torch.full((1, 4), 0.5)
    loss = mask_losses(Decoded(student, scores), Decoded(teacher, scores + 0.1), valid)
    entropy = -(0.75 * np.log(0.5) + 0.25 * np.log(0.5)) + (0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    dice = 1 - (2 * 16 * 0.5 * 0.75 + 1) / (16 * 0.25 + 16 * 0.5625 + 1)
    assert loss.item() == pytest.approx(entropy + dice + 0.01, abs=1e-5)
    same = mask_losses(Decoded(teacher, scores), Decoded(teacher, scores), valid)
    assert same.item() == pytest.approx(0.0, abs=1e-5)


def test_decoder_leaves_out_the_padding(sam):
    """With the upper left part of the features alone, it says what SAM's own decoder says with the positions cut alike."""
    torch.manual_seed(0)
    features = torch.randn(1, 256, 10, 14)
    points, labels = torch.rand(3, 2, 2) * 100, torch.tensor([[1, 0], [1, 1], [0, 1]])
    masks = torch.randn(3, 1, 40, 56)
    with torch.no_grad():
        found = FrozenDecoder(sam)(features, points, labels=labels, masks=masks)
        sparse, dense = sam.prompt_encoder((points, labels), None, masks)
        positions = sam.prompt_encoder.get_dense_pe()[:, :, :10, :14]
        for multimask, part in ((False, slice(0, 1)), (True, slice(1, 4))):
            logits, scores = sam.mask_decoder(features, positions, sparse, dense, multimask)
            torch.testing.assert_close((found.logits[:, part], found.scores[:, part]), (logits, scores))


def test_agreement(sam):
    decoder = FrozenDecoder(sam)
    features = torch.randn(1, 256, 16, 16)
    valid = torch.ones(16, 16, dtype=torch.bool)
    points = draw_points(valid, 5, torch.Generator().manual_seed(0))
    assert teacher_mask_iou(features, features, valid, decoder, points).tolist() == [1.0] * 5
    other = torch.randn(1, 256, 16, 16)
    found = teacher_mask_iou(other, features, valid, decoder, points)
    with torch.no_grad():
        a, b = (decoder(f, points) for f in (other, features))
    for i in range(5):
        one, two = ((d.logits[i, 1 + d.scores[i, 1:].argmax()] > 0).numpy() for d in (a, b))
        assert found[i].item() == pytest.approx((one & two).sum() / max(1, (one | two).sum()) if (one | two).any() else 1.0)
