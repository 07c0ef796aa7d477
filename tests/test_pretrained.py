"""The weights in the package: whole, known, and good enough to be told from none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from segment_anything import SamPredictor

from groupmix_sam import build_sam_groupmix, weights
from groupmix_sam.encoders.config import pretrained_file
from groupmix_sam.images import read_image
from groupmix_sam.masks import tight_box
from groupmix_sam.weights import read_weights

PATH = Path(pretrained_file("gmf_sam_2282"))
ROOT = Path(__file__).parents[1]
COFFEE = ROOT / "examples" / "coffee.jpg"
DOCS = ROOT / "docs"
# Outlined by hand: cup with handle, in pixels of the photo.
CUP = [(173, 100), (185, 60), (215, 32), (255, 19), (300, 17), (345, 27), (385, 52), (406, 90), (408, 118), (395, 170)]
CUP += [(382, 212), (360, 235), (330, 248), (325, 275), (290, 285), (258, 280), (245, 290), (238, 305), (210, 306)]
CUP += [(195, 290), (200, 255), (215, 238), (190, 200), (178, 150)]


@pytest.fixture(scope="module")
def predictor():
    predictor = SamPredictor(build_sam_groupmix())
    predictor.set_image(read_image(COFFEE))
    return predictor


@pytest.fixture(scope="module")
def fast():
    predictor = SamPredictor(build_sam_groupmix("fast"))
    predictor.set_image(read_image(COFFEE))
    return predictor


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_a_damaged_installation_is_told(tmp_path, monkeypatch):
    assert weights.sha256(PATH) == weights.PRETRAINED["gmf_sam_2282"]
    damaged = tmp_path / PATH.name
    data = bytearray(PATH.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    monkeypatch.setattr(weights, "pretrained_file", lambda _name: str(damaged))
    with pytest.raises(weights.WeightsError, match="reinstall groupmix-sam"):
        build_sam_groupmix()


def test_header_tells_how_it_was_trained():
    _, metadata = read_weights(PATH)
    assert metadata["architecture"] == "gmf_sam_2282"
    record = json.loads(metadata["training"])
    assert record["r2"] > 0.8
    assert record["runs"][0]["teacher"].startswith("MobileSAM")


def test_timm_gets_the_same_encoder():
    encoder = timm.create_model("gmf_sam_2282", pretrained=True)
    for (key, a), b in zip(encoder.state_dict().items(), build_sam_groupmix().image_encoder.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert "gmf_sam_2282.distilled" in timm.list_models("gmf_sam_*", pretrained=True)
    assert timm.list_models("sam_resnet18", pretrained=True) == []


def test_timm_fits_the_weights_to_other_channels():
    """A gray camera: the first convolution's weights are summed over RGB."""
    gray = timm.create_model("gmf_sam_2282", pretrained=True, in_chans=1, num_classes=3)
    rgb = timm.create_model("gmf_sam_2282", pretrained=True)
    torch.testing.assert_close(gray.stem.conv1.weight, rgb.stem.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(gray.neck.proj.weight, rgb.neck.proj.weight)


def test_cup_by_box(predictor):
    """Nearer to the outline drawn by hand than the filled box."""
    truth = Image.new("1", (600, 400))
    ImageDraw.Draw(truth).polygon(CUP, fill=1)
    cup = np.asarray(truth)
    ys, xs = np.nonzero(cup)
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    filled = np.zeros_like(cup)
    filled[box[1] : box[3], box[0] : box[2]] = True
    masks, _, _ = predictor.predict(box=box, multimask_output=False)
    assert iou(masks[0], cup) > max(iou(filled, cup), 0.8)


def test_a_background_point_takes_away(predictor):
    """A background point takes away what it is on."""
    point, background = [290, 240], [290, 130]
    masks, scores, _ = predictor.predict(np.array([point]), np.array([1]))
    both, _, _ = predictor.predict(np.array([point, background]), np.array([1, 0]), multimask_output=False)
    assert masks[scores.argmax()][point[1], point[0]]
    assert not both[0][background[1], background[0]]


def test_fast_finds_the_cup_too(predictor, fast):
    """At 512 pixels the fast weights give the mask of the default ones at 1024, but for its rim."""
    box = np.array([173, 17, 408, 306])
    expected, _, _ = predictor.predict(box=box, multimask_output=False)
    small = SamPredictor(build_sam_groupmix(image_size=512))
    small.set_image(read_image(COFFEE))
    for other, least in ((fast, 0.85), (small, 0.7)):
        assert iou(expected[0], other.predict(box=box, multimask_output=False)[0][0]) > least


def test_what_the_guides_show_of_fast(fast):
    """An answer of the server, and what the example in C++ prints, whose JPEG decoder is another one."""
    masks, scores, _ = fast.predict(box=np.array([170, 16, 420, 312]), multimask_output=False)
    (shown,) = re.findall(r'"instances":\[(\{.*?\}\})', (DOCS / "serve.md").read_text(), re.DOTALL)
    answer = json.loads(shown)
    assert answer["score"] == pytest.approx(scores[0], abs=1e-3)
    # segment-anything resizes its logits twice.
    assert answer["area"] == pytest.approx(masks[0].sum(), rel=0.01)
    assert answer["box"] == pytest.approx(tight_box(masks[0]), abs=2)
    (printed,) = re.findall(r"^score (.*)$", (DOCS / "other_languages.md").read_text(), re.MULTILINE)
    assert float(printed) == pytest.approx(scores[0], abs=2e-3)


@pytest.mark.parametrize("name", ["default", "fast"])
def test_what_loads_by_name(name):
    """By the name of the weights, by the encoder's, and from timm: the same."""
    sam = build_sam_groupmix(name)
    encoder = weights.SHIPPED[name]
    other = build_sam_groupmix(encoder=encoder)
    alone = timm.create_model(encoder, pretrained=True)
    assert (sam.image_encoder.img_size, sam.image_encoder.embed_stride) == {"default": (1024, 16), "fast": (512, 8)}[name]
    for key, value in sam.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    for key, value in alone.state_dict().items():
        assert torch.equal(value, sam.state_dict()[f"image_encoder.{key}"])
    assert weights.sha256(Path(pretrained_file(encoder))) == weights.PRETRAINED[encoder]


def test_near_the_teacher(shared, predictor):
    """On the photo's cup, by box, the mask is the teacher's but for its rim."""
    teacher = SamPredictor(build_sam_groupmix(shared / "weights" / "mobile_sam.safetensors", encoder="sam_tiny_vit_5m"))
    teacher.set_image(read_image(COFFEE))
    box = np.array([173, 17, 408, 306])
    expected, _, _ = teacher.predict(box=box, multimask_output=False)
    got, _, _ = predictor.predict(box=box, multimask_output=False)
    assert iou(expected[0], got[0]) > 0.85
