"""The builder, in the stock classes of whichever segment-anything is installed."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything import sam_model_registry as stock_registry
from torch.nn import functional as F

from groupmix_sam import build_sam_groupmix, sam_model_registry
from groupmix_sam.errors import InvalidInputError, MissingExtraError, UnknownNameError, WeightsError, WeightsNotFoundError
from groupmix_sam.sam import ENCODERS
from groupmix_sam.weights import save_weights

from .release import ALL


def image(height=90, width=120):
    """Colour gradients with a bright rectangle."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([2 * x, 2 * y, 255 - x - y], axis=-1).astype(np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 250
    return image


@pytest.fixture(scope="module")
def sam():
    """Tiny and untrained. Its features are scaled up, so that the masks depend on the image and the prompt."""
    torch.manual_seed(0)
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256)
    sam.image_encoder.neck.proj.weight.data *= 30
    return sam


@pytest.fixture
def predictor(sam):
    predictor = SamPredictor(sam)
    predictor.set_image(image())
    return predictor


@torch.no_grad()
def by_hand(sam, image, points=None, boxes=None, masks=None, multimask=True, size=256):
    """Return low-resolution logits and predicted IoU, from the modules themselves; prompts in the resized image's frame."""
    height, width = (round(side * size / max(image.shape)) for side in image.shape[:2])
    from PIL import Image

    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR)).astype(np.float32)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    x = torch.zeros(1, 3, size, size)
    x[0, :, :height, :width] = torch.from_numpy((resized - mean) / std).permute(2, 0, 1)
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    return sam.mask_decoder(sam.image_encoder(x), sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask)


SCALE = 256 / 120
PROMPTS = {
    "point": {"point_coords": np.array([[60, 45]]), "point_labels": np.array([1])},
    "points with background": {"point_coords": np.array([[60, 45], [10, 10], [90, 70]]), "point_labels": np.array([1, 0, 1])},
    "box": {"box": np.array([20, 10, 100, 80])},
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
}


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_predict(sam, predictor, prompt, multimask):
    masks, scores, logits = predictor.predict(**prompt, multimask_output=multimask)
    points = boxes = dense = None
    if "point_coords" in prompt:
        coords = torch.tensor(prompt["point_coords"] * SCALE, dtype=torch.float)[None]
        points = (coords, torch.tensor(prompt["point_labels"])[None])
    if "box" in prompt:
        boxes = torch.tensor(prompt["box"] * SCALE, dtype=torch.float)[None]
    if "mask_input" in prompt:
        dense = torch.tensor(prompt["mask_input"])[None]
    expected, iou = by_hand(sam, image(), points, boxes, dense, multimask)
    assert len(masks) == (3 if multimask else 1)
    torch.testing.assert_close(torch.tensor(logits), expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(scores), iou[0], rtol=1e-4, atol=1e-4)
    upscaled = F.interpolate(expected, (256, 256), mode="bilinear", align_corners=False)[..., :192, :256]
    upscaled = F.interpolate(upscaled, (90, 120), mode="bilinear", align_corners=False)[0]
    clear = upscaled.abs() > 1e-3  # at the border itself rounding decides
    assert torch.equal(torch.tensor(masks)[clear], (upscaled > 0)[clear])


def test_prompts_and_images_matter(predictor):
    """What the test above compares is not the same everywhere."""
    logits = [predictor.predict(**prompt, multimask_output=False)[2] for prompt in PROMPTS.values()]
    assert all(np.abs(a - b).max() > 1e-2 for i, a in enumerate(logits) for b in logits[:i])
    predictor.set_image(255 - image())
    assert np.abs(predictor.predict(**PROMPTS["box"], multimask_output=False)[2] - logits[2]).max() > 1e-3


def test_predict_torch_in_a_batch(predictor):
    boxes = torch.tensor([[40.0, 20, 200, 160], [10, 10, 60, 60], [100, 50, 250, 180]])
    together, scores, _ = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)
    for i, box in enumerate(boxes):
        alone, score, _ = predictor.predict_torch(None, None, box[None], multimask_output=False, return_logits=True)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores[i], score[0], rtol=1e-4, atol=1e-4)


def test_reset_image(predictor):
    predictor.reset_image()
    with pytest.raises(RuntimeError, match="must be set"):
        predictor.predict(**PROMPTS["point"])


def test_sam_forward_on_a_batch(sam, predictor):
    """Two images of different sizes through Sam.forward: as one by one through SamPredictor."""
    batch = []
    expected = []
    for array in (image(), image(100, 60)):
        predictor.set_image(array)
        resized = predictor.transform.apply_image(array)
        box = predictor.transform.apply_boxes_torch(torch.tensor([[5.0, 5, 50, 60]]), array.shape[:2])
        batch.append({"image": torch.tensor(resized).permute(2, 0, 1), "original_size": array.shape[:2], "boxes": box})
        expected.append(predictor.predict(box=np.array([5, 5, 50, 60]), multimask_output=False)[2])
    for out, logits in zip(sam(batch, multimask_output=False), expected, strict=True):
        torch.testing.assert_close(out["low_res_logits"][0], torch.tensor(logits), rtol=1e-4, atol=1e-4)


def test_automatic_masks(sam):
    """With every threshold off, the masks are those of the grid's points."""
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=2, pred_iou_thresh=-1e9, stability_score_thresh=-1, box_nms_thresh=1.0
    )
    found = generator.generate(image())
    predictor = SamPredictor(sam)
    predictor.set_image(image())
    assert {tuple(m["point_coords"][0]) for m in found} <= {(x, y) for x in (30.0, 90.0) for y in (22.5, 67.5)}
    assert found
    for record in found:
        masks, scores, _ = predictor.predict(np.array(record["point_coords"]), np.array([1]))
        index = np.abs(scores - record["predicted_iou"]).argmin()
        assert (masks[index] == record["segmentation"]).mean() > 0.999


def test_image_size_reaches_every_part():
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=512)
    assert sam.image_encoder.img_size == 512
    assert sam.prompt_encoder.input_image_size == (512, 512)
    assert sam.prompt_encoder.get_dense_pe().shape == (1, 256, 32, 32)
    predictor = SamPredictor(sam)
    predictor.set_image(image())
    boxes = torch.tensor(PROMPTS["box"]["box"] * 512 / 120, dtype=torch.float)[None]
    expected, _ = by_hand(sam, image(), boxes=boxes, size=512)
    assert expected.shape == (1, 3, 128, 128)
    torch.testing.assert_close(torch.tensor(predictor.predict(**PROMPTS["box"])[2]), expected[0], rtol=1e-4, atol=1e-4)


def test_unknown_model_in_the_registry():
    with pytest.raises(KeyError, match="did you mean gmf_sam_2282"):
        sam_model_registry["gmf_sam_228"]


@pytest.mark.parametrize("error", [UnknownNameError.near("encoder", "a", ["b"]), MissingExtraError.of("pycocotools", "eval")])
def test_errors_travel_between_processes(error):
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_untrained_and_eval():
    sam = sam_model_registry["gmf_sam_2282"](checkpoint=None)
    assert not any(m.training for m in sam.modules())
    stock = stock_registry["vit_b"](checkpoint=None)
    assert sam.prompt_encoder.state_dict().keys() == stock.prompt_encoder.state_dict().keys()
    assert sam.mask_decoder.state_dict().keys() == stock.mask_decoder.state_dict().keys()
    assert torch.equal(sam.pixel_mean, stock.pixel_mean)
    assert torch.equal(sam.pixel_std, stock.pixel_std)
    assert sam.mask_threshold == stock.mask_threshold
    assert sam.image_format == stock.image_format


def test_registry_has_every_encoder():
    assert set(sam_model_registry) == {"default", "fast", *ENCODERS}
    for name in ENCODERS:
        sam = sam_model_registry[name]()  # as in segment-anything, without weights
        assert sam.image_encoder.pretrained_cfg["architecture"] == name
        grid = sam.image_encoder.img_size // sam.image_encoder.embed_stride
        assert sam.prompt_encoder.image_embedding_size == (grid, grid) == (64, 64)
    assert set(ENCODERS) <= set(timm.list_models())


@pytest.mark.parametrize(
    ("encoder", "match"),
    [("gmf_sam_2228", "did you mean gmf_sam_2282"), ("resnet18", "there is no encoder 'resnet18'"), ("", "known are")],
)
def test_unknown_encoder(encoder, match):
    with pytest.raises(UnknownNameError, match=match):
        build_sam_groupmix(None, encoder=encoder)


@pytest.mark.parametrize("size", [0, -16, 1000, 16.0, "1024", True, (512, 1024)])
def test_bad_image_size(size):
    with pytest.raises(InvalidInputError, match=r"image size is"):
        build_sam_groupmix(None, encoder="gmf_sam_test", image_size=size)


def test_missing_file_is_told_before_anything_else():
    with pytest.raises(WeightsNotFoundError, match="check the path"):
        build_sam_groupmix("nowhere.safetensors")


@pytest.mark.release
@pytest.mark.skipif("GROUPMIX_SAM_PY" in os.environ, reason="is itself that run")
def test_segment_anything_py(tmp_path):
    """The newer package of the same import name passes this file too; one test of it must do for `make test`."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), "segment-anything-py"]
    subprocess.run(pip, check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "GROUPMIX_SAM_PY": "1"}
    code = "import segment_anything, sys, pytest; print(segment_anything.__file__); sys.exit(pytest.main(sys.argv[1:]))"
    run = [sys.executable, "-c", code, __file__, "-q", "-p", "no:cacheprovider"]
    run += [] if ALL else ["-k", "test_untrained_and_eval"]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert str(tmp_path) in done.stdout.splitlines()[0]
    assert done.returncode == 0, done.stdout + done.stderr


def test_512_takes_the_weights_of_1024(tmp_path):
    """And the other way round; what else the header says is of the other encoder, and is not used."""
    large = build_sam_groupmix(None, encoder="gmf_sam_2282")
    path = save_weights(large, tmp_path / "a.safetensors")
    small = build_sam_groupmix(path, encoder="gmf_sam_2282_512")
    assert (small.image_encoder.img_size, small.image_encoder.embed_stride) == (512, 8)
    for name, value in large.state_dict().items():
        assert torch.equal(small.state_dict()[name], value)
    back = build_sam_groupmix(save_weights(small, tmp_path / "b.safetensors"), encoder="gmf_sam_2282")
    assert (back.image_encoder.img_size, back.image_encoder.embed_stride) == (1024, 16)
    with pytest.raises(WeightsError, match="holds weights for 'gmf_sam_2282', not for 'gmf_sam_2264'"):
        build_sam_groupmix(path, encoder="gmf_sam_2264")


def test_the_stride_is_kept(tmp_path):
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=128, embed_stride=8)
    again = build_sam_groupmix(save_weights(sam, tmp_path / "a.safetensors"))
    assert (again.image_encoder.img_size, again.image_encoder.embed_stride) == (128, 8)
    assert again.prompt_encoder.image_embedding_size == (16, 16)
    assert build_sam_groupmix(None, encoder="timm/test_resnet", image_size=64, embed_stride=8).image_encoder.embed_stride == 8
    with pytest.raises(InvalidInputError, match="the features of sam_resnet18 have stride 16 alone"):
        build_sam_groupmix(None, encoder="sam_resnet18", embed_stride=8)
