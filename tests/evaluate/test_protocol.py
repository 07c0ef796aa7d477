from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from torch.nn import functional as F

from groupmix_sam import build_sam_groupmix
from groupmix_sam.errors import InvalidInputError, UnknownNameError
from groupmix_sam.evaluate import Prompt, Protocol, preset
from groupmix_sam.evaluate.models import NanoSamPredictor
from groupmix_sam.evaluate.protocol import predict_mask, prompt_for, simulate_clicks
from groupmix_sam.masks import mask_iou

from .images import PlainPredictor


@pytest.fixture
def plain():
    predictor = PlainPredictor()
    predictor.set_image(np.zeros((64, 96, 3), dtype=np.uint8))
    return predictor


def square(reach, x=40, y=30):
    mask = np.zeros((64, 96), dtype=bool)
    mask[y - reach : y + reach, x - reach : x + reach] = True
    return mask


@pytest.mark.parametrize(
    ("mask_selection", "reach", "predicted"),
    [("single", 4, 0.8), ("best-of-3", 8, 0.9), ("best-of-4", 8, 0.9), ("oracle", 12, 0.7), ("stability", 4, 0.5)],
)
def test_choices_by_hand(plain, mask_selection, reach, predicted):
    """Of squares of 8, 16 and 24: the second looks best to the model, the third is the truth, the second is unstable."""
    answer = predict_mask(plain, Prompt([[40, 30]], [1]), mask_selection, square(12))
    assert np.array_equal(answer.mask, square(reach))
    assert answer.predicted_iou == predicted
    assert answer.low_res_logits.shape == (1, 256, 256)


def test_an_empty_mask_is_not_stable():
    """Of a mask without a pixel above or about the threshold the score is 0 / 0."""
    logits = np.full((3, 64, 96), -4.0)
    logits[1, 10:20, 10:20] = 4.0
    answer = SimpleNamespace(predict=lambda **_: (logits, np.array([0.9, 0.5, 0.1]), np.zeros((3, 256, 256))))
    assert predict_mask(answer, Prompt([[15, 15]], [1]), "stability").mask.sum() == 100


def test_best_of_4_counts_the_single_mask():
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256)
    predictor = SamPredictor(sam)
    predictor.set_image(np.zeros((64, 96, 3), dtype=np.uint8))
    prompt = Prompt(box=[10.0, 10.0, 50.0, 40.0])
    boxes = torch.from_numpy(predictor.transform.apply_boxes(np.array([prompt.box]), (64, 96))).float()
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
        pe = sam.prompt_encoder.get_dense_pe()
        low_res, predicted = sam.mask_decoder.predict_masks(predictor.features, pe, sparse, dense)
    answer = predict_mask(predictor, prompt, "best-of-4")
    best = int(predicted[0].argmax())
    assert answer.predicted_iou == pytest.approx(float(predicted[0, best]), abs=1e-5)
    np.testing.assert_allclose(answer.low_res_logits[0], low_res[0, best].numpy(), atol=1e-4)


def test_an_oracle_needs_a_truth(plain):
    with pytest.raises(InvalidInputError, match="needs the truth"):
        predict_mask(plain, Prompt([[40, 30]], [1]), "oracle")


def test_clicks_by_hand():
    """A model that fills exactly what lies left of the last click, or right of it: each click mends what is deepest."""
    truth = np.zeros((30, 60), dtype=bool)
    truth[5:25, 5:45] = True

    class Scripted:
        """First the left part alone, then too much, then the truth."""

        def __init__(self):
            self.asked = []

        def predict(self, point_coords, point_labels, box, mask_input=None, multimask_output=True, return_logits=False):
            self.asked.append((point_coords.tolist(), point_labels.tolist(), mask_input is not None, multimask_output))
            mask = np.zeros_like(truth)
            mask[5:25, 5 : (16, 58, 45)[len(self.asked) - 1]] = True
            count = 3 if multimask_output else 1
            return np.stack([mask] * count), np.linspace(0.9, 0.8, count), np.zeros((count, 8, 8), dtype=np.float32)

    model = Scripted()
    prompt, answers = simulate_clicks(model, truth, 5, "best-of-3")
    assert [mask_iou(a.mask, truth) for a in answers] == pytest.approx([11 / 40, 40 / 53, 1])
    assert prompt.labels == [1, 1, 0], "missed, then too much, then nothing is left to click at"
    assert all(16 <= x < 45 for x, _ in prompt.points[1:2])
    assert 45 <= prompt.points[2][0] < 58
    assert [ask[2:] for ask in model.asked] == [(False, True), (True, False), (True, False)]


def test_prompts_for_a_mask():
    truth, box = square(5), [35.0, 25.0, 45.0, 35.0]
    assert prompt_for("box", truth, box, (0, 1)).record() == {"box": box}
    assert prompt_for("point", truth, box, (0, 1)).record() == {"points": [[39.0, 30.0]], "labels": [1]}
    random = [prompt_for("random-point", truth, box, (0, i)).points for i in (1, 2, 1)]
    assert random[0] == random[2] != random[1]


def test_presets_and_defaults():
    assert preset("sam").record()["prompts"] == {"box": "single", "point": "best-of-3"}
    nanosam = preset("nanosam").record()
    assert (nanosam["prompts"], nanosam["crowds"], nanosam["min_mask_area"]) == ({"box": "best-of-4"}, True, 0)
    assert Protocol(prompts=("clicks-3",), mask_selection="oracle").selection_for("clicks-3") == "oracle"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("nanosa"), "did you mean nanosam"),
        (lambda: Protocol(mask_selection="best-of-5"), "did you mean best-of"),
        (lambda: Protocol(resize="linear"), "no way to resize 'linear'"),
        (lambda: Protocol(prompts=("circle",)), "the prompt is 'circle'"),
        (lambda: Protocol(prompts=("clicks-0",)), "the prompt is 'clicks-0'"),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        call()


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (64, 64)])
def test_nanosam_preset_from_scratch(size):
    """Its rules as its evaluation and its exported decoder have them, put together from SAM's parts."""
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    box = [10.5, 8.0, 40.25, 44.0]
    height, width = size
    aspect = width / height
    resized = (256, int(256 / aspect)) if aspect >= 1 else (int(256 * aspect), 256)
    pixels = torch.from_numpy(np.array(Image.fromarray(image).resize(resized))).permute(2, 0, 1).float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    x = torch.zeros(1, 3, 256, 256)
    x[0, :, : resized[1], : resized[0]] = (pixels - mean[:, None, None]) / std[:, None, None]
    corners = (torch.tensor(box).view(2, 2) * 256 / max(size) + 0.5) / 256
    with torch.no_grad():
        encoder = sam.prompt_encoder
        sparse = encoder.pe_layer._pe_encoding(corners[None])
        sparse = sparse + torch.stack([encoder.point_embeddings[i].weight[0] for i in (2, 3)])
        dense = encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, 16, 16)
        low_res, predicted = sam.mask_decoder.predict_masks(sam.image_encoder(x), encoder.get_dense_pe(), sparse, dense)
        wide = width > height
        low_res = low_res[:, :, : int(64 * height / width)] if wide else low_res[..., : int(64 * width / height)]
        expected = F.interpolate(low_res, size, mode="bilinear")[0, predicted[0].argmax()].numpy()

    predictor = NanoSamPredictor(sam)
    predictor.set_image(image)
    answer = predict_mask(predictor, Prompt(box=box), "best-of-4")
    decided = abs(expected) > 1e-4  # nearer to the threshold rounding decides
    assert decided.mean() > 0.9
    assert np.array_equal(answer.mask[decided], expected[decided] > 0)
    assert answer.predicted_iou == pytest.approx(float(predicted.max()), abs=1e-5)
