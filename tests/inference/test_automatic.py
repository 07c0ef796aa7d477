"""Things in images, judged by segment-anything's own predictor and generator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from groupmix_sam import build_sam_groupmix
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.evaluate.protocol import Protocol, predict_mask
from groupmix_sam.images import as_rgb, read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.automatic import everything, everything_costs, points_at_once, segment
from groupmix_sam.prompts import Prompt, stack_prompts

COFFEE = Path(__file__).parents[2] / "examples" / "coffee.jpg"
PROMPTS = [
    Prompt([[275.0, 130.0]], [1]),
    Prompt([[275.0, 130.0], [20.0, 20.0]], [1, 0]),
    Prompt([[275.0, 130.0]], [1], [170.0, 16.0, 420.0, 312.0], "cup"),
]


@pytest.fixture(scope="module")
def sam():
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256)
    sam.image_encoder.neck.proj.weight.data *= 30  # so that the masks depend on the image
    return sam.requires_grad_(False)


@pytest.fixture(scope="module")
def coffee():
    return read_image(COFFEE)


def test_is_sam_predictor_and_ours(sam, coffee):
    """One point gets the best of three masks, more prompts get the one."""
    found = segment(SamPredictor(sam), coffee, PROMPTS)
    judge = SamPredictor(sam)
    judge.set_image(coffee)
    for instance, prompt, three in zip(found, PROMPTS, (True, False, False), strict=True):
        masks, scores, _ = judge.predict(
            np.array(prompt.points), np.array(prompt.labels), prompt.box and np.array(prompt.box), multimask_output=three
        )
        assert np.array_equal(instance.mask, masks[scores.argmax()])
        assert instance.score == scores.max()
    assert [instance.category for instance in found] == ["object", "object", "cup"]
    assert found[2].prompt == replace(PROMPTS[2], category=None)
    for ours, theirs in zip(segment(Predictor(sam), coffee, PROMPTS), found, strict=True):
        assert (ours.mask == theirs.mask).mean() > 0.98


@pytest.mark.parametrize("kind", [SamPredictor, Predictor])
def test_other_arrays_are_what_as_rgb_makes_of_them(sam, coffee, kind):
    """Grayscale and RGBA of 16 bits, for either predictor and its model."""
    for image in (coffee[:, :, 0], np.dstack([coffee, coffee[:, :, :1]]).astype(np.uint16) * 257):
        assert segment(kind(sam), image, PROMPTS) == segment(kind(sam), as_rgb(image), PROMPTS)
        settings = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
        model = sam if kind is SamPredictor else kind(sam)
        assert everything(model, image, **settings) == everything(model, as_rgb(image), **settings) != []


@pytest.mark.parametrize("prompt", [*PROMPTS, Prompt(box=[170.0, 16.0, 420.0, 312.0])])
def test_one_rule_says_which_mask_is_taken(sam, coffee, prompt):
    """`segment`, `predict_single_mask`, which `stream` calls, and `evaluate` take the same one."""
    predictor = Predictor(sam)
    (instance,) = segment(predictor, coffee, [prompt])
    masks, scores = predictor.predict_single_mask(*stack_prompts([prompt]))
    answer = predict_mask(predictor, prompt, Protocol().selection_for(prompt.kind))
    assert np.array_equal(masks[0], instance.mask)
    assert np.array_equal(answer.mask, instance.mask)
    assert scores[0] == answer.predicted_iou == instance.score


def test_prompts_are_checked_before_the_work(coffee):
    with pytest.raises(InvalidInputError, match="outside the image of 600 x 400"):
        segment(None, coffee, [*PROMPTS, Prompt([[700.0, 1.0]], [1])])
    with pytest.raises(InvalidInputError, match="nothing says what to segment"):
        segment(None, coffee, [])


def test_everything_is_the_generator(coffee, monkeypatch):
    """Its masks, whatever the number of points at a time, without those that are too small; the largest first."""
    sam, coffee = build_sam_groupmix(image_size=256), coffee[::2, ::2]  # an untrained model's masks are too much alike
    judge = SamAutomaticMaskGenerator(sam, points_per_side=3, pred_iou_thresh=0.6, stability_score_thresh=0.6, crop_n_layers=1)
    expected = [entry for entry in judge.generate(coffee) if entry["area"] >= 500]
    settings = {
        "points_per_side": 3,
        "pred_iou_thresh": 0.6,
        "stability_score_thresh": 0.6,
        "min_mask_area": 500,
        "crop_n_layers": 1,
    }
    found = everything(sam, coffee, **settings)
    assert len(found) > 3
    areas = [np.count_nonzero(instance.mask) for instance in found]
    assert [instance.area for instance in found] == areas
    assert areas == sorted((entry["area"] for entry in expected), reverse=True)
    by_point = {(*entry["point_coords"][0], entry["area"]): entry for entry in expected}
    for instance, area in zip(found, areas, strict=True):
        entry = by_point[(*instance.prompt.points[0], area)]
        assert np.array_equal(instance.mask, entry["segmentation"])
        assert instance.score == pytest.approx(entry["predicted_iou"])
    monkeypatch.setattr("groupmix_sam.inference.automatic.PIXELS_AT_ONCE", 2 * coffee.shape[0] * coffee.shape[1])
    again = everything(sam, coffee, **settings)
    assert len(again) == len(found)
    for one, two in zip(again, found, strict=True):
        assert (one.mask == two.mask).mean() > 0.999, "batches differ by rounding"


def test_everything_by_our_predictor(coffee):
    """The same instances as by SamPredictor, within a hair, in another order where areas are alike."""
    sam, coffee = build_sam_groupmix(image_size=256), coffee[::2, ::2]
    settings = {"points_per_side": 3, "pred_iou_thresh": 0.6, "stability_score_thresh": 0.6, "crop_n_layers": 1}
    found = [instance.mask for instance in everything(Predictor(sam), coffee, **settings)]
    expected = [instance.mask for instance in everything(sam, coffee, **settings)]
    assert abs(len(found) - len(expected)) <= 1
    near = [max((a & b).sum() / (a | b).sum() for b in found) for a in expected]
    assert np.median(near) > 0.97
    assert sum(value > 0.9 for value in near) >= len(near) - 1


@pytest.mark.parametrize("kind", [lambda sam: sam, Predictor])
def test_nothing_found(sam, coffee, kind):
    for layers in (0, 1):
        assert everything(kind(sam), coffee, points_per_side=2, pred_iou_thresh=1.0, crop_n_layers=layers) == []


@pytest.mark.parametrize(("points_per_side", "layers"), [(32, 0), (3, 1), (2, 2)])
def test_costs_are_those_of_the_generator(sam, points_per_side, layers):
    passes = prompts = 0

    class Counted(SamAutomaticMaskGenerator):
        def _process_crop(self, image, crop_box, layer, size):
            nonlocal passes, prompts
            passes, prompts = passes + 1, prompts + len(self.point_grids[layer])
            raise StopIteration

    counted = Counted(sam, points_per_side=points_per_side, crop_n_layers=layers)
    from segment_anything.utils.amg import generate_crop_boxes

    for box, layer in zip(*generate_crop_boxes((400, 600), layers, 512 / 1500), strict=True):
        with pytest.raises(StopIteration):
            counted._process_crop(None, box, layer, (400, 600))
    assert everything_costs(points_per_side, layers) == (passes, prompts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points_per_side": 0}, "points_per_side is 0"),
        ({"crop_n_layers": -1}, "crop_n_layers is -1"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh is 1.5"),
        ({"stability_score_thresh": -0.1}, "stability_score_thresh is -0.1"),
        ({"min_mask_area": -4}, "min_mask_area is -4"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        everything(None, np.zeros((4, 4, 3), np.uint8), **settings)


def test_the_predictor_keeps_its_image(sam, coffee):
    predictor = Predictor(sam)
    predictor.set_image(coffee)
    box = np.array([20, 10, 100, 80])
    before = predictor.predict(box=box)[2]
    everything(predictor, coffee[:50, :60], points_per_side=2)
    np.testing.assert_array_equal(predictor.predict(box=box)[2], before)


@pytest.mark.parametrize(
    ("free", "size", "expected"),
    [
        (None, (1024, 1024), 64),
        (None, (100, 100), 64),
        (None, (4000, 6000), 2),
        (None, (20000, 20000), 1),
        (80_000_000_000, (1024, 1024), 64),
        (8_000_000_000, (1024, 1024), 39),
        (8_000_000_000, (4000, 6000), 3),
        (1_000_000_000, (1024, 1024), 4),
        (0, (1024, 1024), 1),
    ],
)
def test_points_at_a_time(monkeypatch, free, size, expected):
    """By half of a GPU's free memory, of which a point takes 48 bytes a pixel and 50 MB."""
    monkeypatch.setattr("groupmix_sam.inference.automatic.free_memory", lambda device: free)
    assert points_at_once(*size, torch.device("cpu")) == expected


def test_everything_keeps_to_it(sam, coffee, monkeypatch):
    settings = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    expected = everything(Predictor(sam), coffee, **settings)
    asked, predict = [], Predictor.predict_tensors

    def recorded(predictor, points, *args, **options):
        asked.append(len(points))
        return predict(predictor, points, *args, **options)

    monkeypatch.setattr(Predictor, "predict_tensors", recorded)
    monkeypatch.setattr("groupmix_sam.inference.automatic.free_memory", lambda device: 500_000_000)
    assert everything(Predictor(sam), coffee, **settings) == expected
    assert asked == [4, 4, 1]
