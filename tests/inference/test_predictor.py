import json
import math
import tracemalloc
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything import SamPredictor
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional as F

from groupmix_sam import build_sam_groupmix
from groupmix_sam.errors import InvalidInputError, NoImageError, RuntimeUnavailableError, WeightsError, WeightsNotFoundError
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.predictor import _powers_of_two

from .conftest import draw

PROMPTS = {
    "point": {"point_coords": np.array([[60, 45]]), "point_labels": np.array([1])},
    "points with background": {"point_coords": np.array([[60, 45], [10, 10], [90, 70]]), "point_labels": np.array([1, 0, 1])},
    "box": {"box": np.array([20, 10, 100, 80])},
    "box over the edge": {"box": np.array([-5, 40, 130.5, 91])},
    "box and point": {
        "box": np.array([20, 10, 100, 80]),
        "point_coords": np.array([[60, 45]]),
        "point_labels": np.array([0]),
    },
    "mask": {
        "point_coords": np.array([[60, 45]]),
        "point_labels": np.array([1]),
        "mask_input": np.linspace(-9, 9, 64 * 64, dtype=np.float32).reshape(1, 64, 64),
    },
    "mask alone": {"mask_input": np.linspace(-9, 9, 64 * 64, dtype=np.float32).reshape(1, 64, 64)},
}


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


@pytest.fixture(scope="module")
def predictor(sam):
    return Predictor(sam)


@pytest.fixture(scope="module")
def stock(sam):
    return SamPredictor(sam)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_same_as_sam_predictor(predictor, stock, prompt, multimask):
    predictor.set_image(draw())
    stock.set_image(draw())
    masks, scores, logits = predictor.predict(**prompt, multimask_output=multimask)
    expected, expected_scores, expected_logits = stock.predict(**prompt, multimask_output=multimask)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-4)
    assert masks.dtype == bool
    assert masks.shape == expected.shape
    resized = predictor.predict(**prompt, multimask_output=multimask, return_logits=True)[0]
    assert np.array_equal(resized > 0, masks)
    # One resize against two: not the same along outlines, of which untrained masks have many.
    assert (masks == expected).mean() > 0.97


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_features_at_stride_8(prompt):
    """A grid of 16 x 16 from 128 pixels: prompts, masks and low-resolution masks keep to it."""
    torch.manual_seed(0)
    sam = build_sam_groupmix(None, encoder="gmf_sam_2282_512", image_size=128)
    sam.image_encoder.neck.proj.weight.data *= 30
    predictor, stock = Predictor(sam), SamPredictor(sam)
    predictor.set_image(draw())
    stock.set_image(draw())
    masks, scores, logits = predictor.predict(**prompt, return_logits=True)
    expected, expected_scores, expected_logits = stock.predict(**prompt, return_logits=True)
    assert logits.shape == (3, 64, 64)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-4)
    assert ((masks > 0) == (expected > 0)).mean() > 0.9  # untrained masks are mostly outlines


def test_a_sam_in_half_precision_is_refused(sam):
    with pytest.raises(InvalidInputError, match=r"the Sam is in torch.float16: give one in fp32, and dtype=torch.float16"):
        Predictor(deepcopy(sam).half())


def test_the_hash_is_of_the_weights_that_run(sam):
    """And not of what the caller makes of the Sam later, under which embeddings would be kept."""
    live = deepcopy(sam)
    predictor = Predictor(live)
    before = predictor.model_hash
    live.load_state_dict({name: value + 1 for name, value in live.state_dict().items()})
    assert predictor.model_hash == before == Predictor(sam).model_hash
    assert Predictor(live).model_hash != before


def test_a_device_that_is_not_there(sam):
    with pytest.raises(RuntimeUnavailableError, match="the device 'cuda:99' cannot be used"):
        Predictor(sam, device="cuda:99")


@settings(max_examples=12, deadline=None)
@given(height=st.integers(8, 300), width=st.integers(8, 300), seed=st.integers(0, 999))
def test_odd_sizes(predictor, stock, height, width, seed):
    rng = np.random.default_rng(seed)
    image = np.ascontiguousarray(draw(height, width))
    corner = rng.random(2) * [width - 2, height - 2]
    box = np.concatenate([corner, corner + 1 + rng.random(2) * ([width, height] - corner - 1)])
    predictor.set_image(image)
    stock.set_image(image)
    np.testing.assert_allclose(predictor.get_image_embedding(), stock.get_image_embedding(), rtol=1e-3, atol=1e-3)
    masks, _, logits = predictor.predict(box=box, return_logits=True)
    expected, _, expected_logits = stock.predict(box=box, return_logits=True)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-3, atol=2e-3)
    assert masks.shape == expected.shape
    assert np.isfinite(masks).all()
    assert ((masks > 0) == (expected > 0)).mean() > 0.95


@settings(max_examples=12, deadline=None)
@given(height=st.integers(8, 300), width=st.integers(8, 300), with_mask=st.booleans())
def test_padding_is_not_encoded(sam, height, width, with_mask):
    """The masks are those of segment-anything's modules on the image's own rectangle."""
    image, box = draw(height, width), np.array([1, 2, width - 1, height - 1])
    earlier = np.random.default_rng(height).normal(0, 5, (1, 64, 64)).astype(np.float32) if with_mask else None
    predictor = Predictor(sam, pad=False)
    predictor.set_image(image)
    _, scores, logits = predictor.predict(box=box, mask_input=earlier)
    pixels = ResizeLongestSide(256).apply_image(image)
    rows, columns = (math.ceil(side / 16) for side in pixels.shape[:2])
    with torch.no_grad():
        whole = sam.preprocess(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float())
        features = sam.image_encoder(whole[:, :, : 16 * rows, : 16 * columns])
        corners = torch.tensor(ResizeLongestSide(256).apply_boxes(box[None], (height, width)))
        masks = None if earlier is None else torch.from_numpy(earlier)[None]
        sparse, dense = sam.prompt_encoder(points=None, boxes=corners, masks=masks)
        positions = sam.prompt_encoder.get_dense_pe()[:, :, :rows, :columns]
        expected, expected_scores = sam.mask_decoder.predict_masks(features, positions, sparse, dense[:, :, :rows, :columns])
    got = predictor.get_image_embedding()
    np.testing.assert_allclose(got[:, :, :rows, :columns], features, rtol=1e-3, atol=1e-3)
    assert not got[:, :, rows:].any()
    assert not got[:, :, :, columns:].any()
    np.testing.assert_allclose(logits[:, : 4 * rows, : 4 * columns], expected[0, 1:], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(scores, expected_scores[0, 1:], rtol=1e-3, atol=1e-3)
    assert logits.shape == (3, 64, 64)


def test_shipped_weights_hold_their_masks():
    """What one resize changes of true masks: IoU to the stock predictor's of at least 0.99."""
    sam = build_sam_groupmix(image_size=512)
    ours, stock = Predictor(sam), SamPredictor(sam)
    image = draw(240, 333)
    ours.set_image(image)
    stock.set_image(image)
    box = np.array([83, 60, 166, 120])
    masks, scores, _ = ours.predict(box=box, multimask_output=False)
    expected, expected_scores, _ = stock.predict(box=box, multimask_output=False)
    assert 0.01 < expected.mean() < 0.9
    assert iou(masks, expected) > 0.99
    np.testing.assert_allclose(scores, expected_scores, atol=1e-3)


@pytest.mark.parametrize("side", [40, 64, 333, 1100])
def test_the_resize_is_pytorchs(predictor, side):
    """Of square images, whose logits have no padding; the larger ones go in several blocks."""
    predictor.set_image(draw(side, side))
    resized, _, logits = predictor.predict(box=np.array([5, 4, 30, 35]), return_logits=True)
    expected = F.interpolate(torch.from_numpy(logits)[None], (side, side), mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(resized, expected, rtol=1e-4, atol=1e-4)
    masks, _, _ = predictor.predict(box=np.array([5, 4, 30, 35]))
    assert np.array_equal(masks, resized > predictor.mask_threshold)


def test_best_of_three_for_one_point_alone(predictor):
    predictor.set_image(draw())
    points, labels = np.array([[[60, 45], [0, 0]], [[30, 30], [90, 70]]]), np.array([[1, -1], [1, 0]])
    for boxes in (None, np.array([[20, 10, 100, 80], [0, 0, 60, 60]])):
        masks, scores = predictor.predict_single_mask(points, labels, boxes)
        expected, expected_scores, _ = predictor.predict_prompts(points, labels, boxes, multimask_output=False)
        expected, expected_scores = expected[:, 0], expected_scores[:, 0]
        if boxes is None:
            three, three_scores, _ = predictor.predict_prompts(points, labels)
            best = three_scores[0].argmax()
            expected[0], expected_scores[0] = three[0, best], three_scores[0, best]
        assert np.array_equal(masks, expected)
        assert np.array_equal(scores, expected_scores)


@pytest.mark.parametrize(("free", "expected"), [(None, 8), (0, 1), (60_000_000, 8), (30_000_000, 4), (10**12, 64)])
def test_prompts_at_a_time(predictor, monkeypatch, free, expected):
    """A power of two by half of a GPU's free memory, of which a prompt takes 12 kB for each of 16 x 16 tokens."""
    monkeypatch.setattr("groupmix_sam.inference.model.free_memory", lambda device: free)
    assert predictor.model.prompts_at_once() == expected


@pytest.mark.parametrize(
    ("total", "most", "parts"),
    [(1, 8, [1]), (13, 8, [8, 4, 1]), (64, 64, [64]), (20, 8, [8, 8, 4]), (3, 1, [1, 1, 1]), (0, 8, [0])],
)
def test_parts_of_prompts(total, most, parts):
    assert _powers_of_two(total, most) == parts


@pytest.mark.parametrize("with_masks", [False, True])
def test_many_prompts_as_one_by_one(predictor, with_masks):
    predictor.set_image(draw())
    boxes = np.array([[20, 10, 100, 80], [0, 0, 60, 60], [1, 50, 110, 85], [7, 7, 9, 9], [30, 20, 60, 50]])
    earlier = [None] * 5 if not with_masks else np.random.default_rng(0).normal(0, 5, (5, 1, 64, 64))
    masks, scores, logits = predictor.predict_prompts(boxes=boxes, mask_input=earlier if with_masks else None)
    assert masks.shape == (5, 3, 90, 120)
    for i, box in enumerate(boxes):
        one, score, low = predictor.predict(box=box, mask_input=earlier[i])
        np.testing.assert_allclose(logits[i], low, atol=1e-3)
        np.testing.assert_allclose(scores[i], score, atol=1e-4)
        assert (masks[i] == one).mean() > 0.999
    for several in (True, False):
        options = {"boxes": boxes, "mask_input": earlier if with_masks else None, "multimask_output": several}
        for found, expected in zip(predictor.predict_logits(**options), predictor.predict_prompts(**options)[1:], strict=True):
            assert np.array_equal(found, expected)


def test_memory_of_many_prompts(predictor):
    """Masks are those of all the logits, of which there never are more than one prompt's."""
    predictor.set_image(draw(600, 800))
    boxes = np.array([20, 10, 500, 400]) + np.arange(32)[:, None]
    expected = predictor.predict_prompts(boxes=boxes, return_logits=True)[0] > 0
    tracemalloc.start()
    masks = predictor.predict_prompts(boxes=boxes)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(masks, expected)
    assert peak < 1.5 * masks.nbytes


def test_several_images_as_one_by_one(predictor):
    images = [draw(), draw(50, 70), draw(200, 61)]
    predictor.set_image_batch(images, batch_size=2)
    together = [predictor.predict(**PROMPTS["point"], index=i)[2] for i in range(3)]
    for image, logits in zip(images, together, strict=True):
        predictor.set_image(image)
        np.testing.assert_allclose(predictor.predict(**PROMPTS["point"])[2], logits, atol=1e-3)


def test_bgr_gray_and_alpha(predictor):
    predictor.set_image(draw())
    expected = predictor.get_image_embedding()
    predictor.set_image(draw()[:, :, ::-1], "BGR")
    assert np.array_equal(predictor.get_image_embedding(), expected)
    predictor.set_image(np.dstack([draw(), np.zeros((90, 120), np.uint8)]))
    assert np.array_equal(predictor.get_image_embedding(), expected)
    predictor.set_image(draw()[:, :, 0])
    assert predictor.predict(**PROMPTS["box"])[0].shape == (3, 90, 120)


def test_half_precision(sam):
    """fp16 and bf16 on a CPU; the masks hold."""
    exact = Predictor(sam)
    exact.set_image(draw())
    expected = exact.get_image_embedding()
    for dtype, error in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        half = Predictor(sam, dtype=dtype)
        half.set_image(draw())
        got = half.get_image_embedding()
        assert 0 < np.abs(got - expected).max() < error * np.abs(expected).max()
    assert next(sam.image_encoder.parameters()).dtype == torch.float32


def test_other_encoders_run_as_they_are():
    sam = build_sam_groupmix(None, encoder="sam_resnet18", image_size=64)
    Predictor(sam, dtype=torch.bfloat16)  # leaves it in fp32
    ours, stock = Predictor(sam), SamPredictor(sam)
    for p in (ours, stock):
        p.set_image(draw())
    np.testing.assert_allclose(ours.predict(**PROMPTS["box"])[2], stock.predict(**PROMPTS["box"])[2], rtol=1e-3, atol=1e-3)


def test_embeddings_are_kept(predictor, sam, tmp_path):
    images = [draw(), draw(50, 70)]
    predictor.set_image_batch(images)
    expected = predictor.predict(**PROMPTS["point"], index=1)
    path = predictor.save_embedding(tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    other = Predictor(sam)
    other.load_embedding(path)
    masks, scores, logits = other.predict(**PROMPTS["point"], index=1)
    np.testing.assert_allclose(logits, expected[2], atol=1e-3)
    np.testing.assert_allclose(scores, expected[1], atol=1e-4)
    assert (masks == expected[0]).mean() > 0.999


def test_embeddings_of_others_are_refused(predictor, tmp_path):
    predictor.set_image(draw())
    path = predictor.save_embedding(tmp_path / "a.safetensors")
    before = predictor.predict(**PROMPTS["box"])[2]
    other = Predictor(build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256))
    with pytest.raises(WeightsError, match="not computed by this model"):
        other.load_embedding(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="not a whole safetensors"):
        predictor.load_embedding(path)
    with pytest.raises(WeightsNotFoundError, match="check the path"):
        predictor.load_embedding(tmp_path / "b.safetensors")
    assert np.array_equal(predictor.predict(**PROMPTS["box"])[2], before)


def test_no_such_image(predictor):
    predictor.set_image(draw())
    for call in (lambda: predictor.predict(**PROMPTS["box"], index=1), lambda: predictor.get_image_embedding(1)):
        with pytest.raises(InvalidInputError, match="index is 1: there are 1 images"):
            call()


def test_no_image(predictor):
    predictor.set_image(draw())
    assert predictor.is_image_set
    predictor.reset_image()
    assert not predictor.is_image_set
    for call in (lambda: predictor.predict(**PROMPTS["box"]), predictor.get_image_embedding):
        with pytest.raises(NoImageError, match="must be set"):
            call()
    with pytest.raises(RuntimeError):  # as SamPredictor raises
        predictor.save_embedding("nowhere")


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ({}, "nothing says what to segment"),
        ({"point_coords": np.ones((1, 2))}, "as many labels"),
        ({"point_labels": np.ones(1)}, "labels without points"),
        ({"point_labels": np.ones(1), "mask_input": np.ones((1, 64, 64))}, "labels without points"),
        ({"mask_input": np.ones((1, 9, 9))}, r"give \(1, 1, 64, 64\)"),
        ({"mask_input": np.zeros((0, 64, 64))}, "nothing says what to segment"),
        ({"point_coords": np.ones(2), "point_labels": np.ones(1)}, "x before y"),
        ({"point_coords": np.ones((1, 2)), "point_labels": np.array([7])}, "1 for foreground"),
        ({"point_coords": np.array([[np.nan, 1]]), "point_labels": np.array([1])}, "not finite"),
        (
            {"point_coords": np.array([[5000, -300]]), "point_labels": np.array([1])},
            r"\(5000, -300\) is outside the image of 120 x 90",
        ),
        ({"point_coords": np.array([[0, 90]]), "point_labels": np.array([0])}, "outside the image"),
        ({"box": np.array([150, 100, 20, 10])}, r"\[150.0, 100.0, 20.0, 10.0\] is reversed"),
        ({"box": np.array([20, 10, 20, 80])}, "no area"),
        ({"box": np.array([120, 10, 130, 80])}, "outside the image of 120 x 90"),
        ({"box": np.ones(3)}, "left, top, right, bottom"),
        ({"box": np.ones(4), "index": 1}, "there are 1 images"),
        ({"box": np.array([1, 1, 9, 9]), "mask_input": np.ones((1, 9, 9))}, r"give \(1, 1, 64, 64\)"),
    ],
)
def test_bad_prompts(predictor, prompt, match):
    predictor.set_image(draw())
    with pytest.raises(InvalidInputError, match=match):
        predictor.predict(**prompt)


def test_one_of_many_prompts_is_bad(predictor):
    predictor.set_image(draw())
    boxes = np.array([[20, 10, 100, 80], [100, 80, 20, 10]])
    with pytest.raises(InvalidInputError, match=r"\[100.0, 80.0, 20.0, 10.0\] is reversed"):
        predictor.predict_prompts(boxes=boxes)
    points, labels = np.array([[[60, 45], [-9, -9]], [[10, 10], [20, 20]]]), np.array([[1, -1], [1, 0]])
    expected = predictor.predict_prompts(np.maximum(points, 0), labels)[2]
    np.testing.assert_array_equal(
        predictor.predict_prompts(points, labels)[2], expected, "where -1 says that there is no point"
    )
    with pytest.raises(InvalidInputError, match=r"\(-9, -9\) is outside"):
        predictor.predict_prompts(points, np.abs(labels))


def test_bad_images(predictor):
    for call, match in (
        (lambda: predictor.set_image_batch([]), "no image"),
        (lambda: predictor.set_image(draw(), "HSV"), "image_format"),
        (lambda: predictor.set_image(draw().astype(float)), "dtype float64"),
        (lambda: predictor.set_image_batch([draw()], batch_size=0), "batch_size"),
        (lambda: predictor.set_image(np.zeros((9000, 1, 3), np.uint8)), "too narrow"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            call()


def test_bad_models(tmp_path):
    with pytest.raises(InvalidInputError, match="a SamResNet takes a square alone: leave out pad"):
        Predictor(build_sam_groupmix(None, encoder="sam_resnet18", image_size=64), pad=False)
    with pytest.raises(InvalidInputError, match=r"give a Sam, or use Predictor.from_pretrained"):
        Predictor(torch.nn.Identity())
    with pytest.raises(WeightsNotFoundError, match="there is no weights file"):
        Predictor.from_pretrained(tmp_path)
    for text in ("no json", "[]", "{}", json.dumps({"runtime": "onnx", "format_version": 1, "files": 3})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WeightsError, match="export it again"):
            Predictor.from_pretrained(tmp_path)
    files = [f"{part}.onnx" for part in ("encoder", "masks", "image", "decoder")]
    config = {"runtime": "onnx", "format_version": 1, "precision": "fp32", "image_size": 256, "model_hash": "", "files": files}
    config |= {"embed_stride": 16, "input_size": [256, 256]}
    config |= {"mean": [0, 0, 0], "std": [1, 1, 1], "mask_threshold": 0.0, "dynamic_batch": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"ValueError.'files'.*export it again"):
        Predictor.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"runtime": "onnx", "format_version": 99, "files": {}}))
    with pytest.raises(WeightsError, match="of format 99"):
        Predictor.from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [(40, 60, 3), (40, 60)])
def test_one_array_is_no_list_of_images(sam, shape):
    """Whose rows would be taken for images."""
    with pytest.raises(InvalidInputError, match=r"images is one array of shape \(40, 60.*give a list of images"):
        Predictor(sam).set_image_batch(np.zeros(shape, np.uint8))


def test_embeddings_of_another_stride_are_refused(tmp_path):
    """The same weights and size, on another grid."""
    torch.manual_seed(0)
    coarse = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=64)
    fine = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=64, embed_stride=8)
    fine.load_state_dict(coarse.state_dict())
    predictor = Predictor(coarse)
    predictor.set_image(draw())
    path = predictor.save_embedding(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="was not computed by this model at this size"):
        Predictor(fine).load_embedding(path)
