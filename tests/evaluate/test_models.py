from pathlib import Path

import numpy as np
import pytest
import segment_anything
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor
from segment_anything.build_sam import _build_sam

from groupmix_sam import build_sam_groupmix, weights
from groupmix_sam.encoders.config import pretrained_file
from groupmix_sam.errors import InvalidInputError, WeightsError
from groupmix_sam.evaluate import load_model
from groupmix_sam.evaluate.models import NanoSamPredictor
from groupmix_sam.files import sha256
from groupmix_sam.weights import save_weights


def test_default_weights():
    model = load_model(resize="nanosam")
    assert isinstance(model.predictor, NanoSamPredictor)
    assert (model.name, model.sha256) == ("gmf_sam_2282", sha256(Path(pretrained_file("gmf_sam_2282"))))
    assert model.label == f"gmf_sam_2282-{model.sha256[:8]}"


def test_default_is_never_a_folder(tmp_path, monkeypatch):
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model().sha256 == sha256(Path(pretrained_file("gmf_sam_2282")))


def test_our_weights_say_what_they_are_for(tmp_path):
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256)
    model = load_model(save_weights(sam, tmp_path / "a.safetensors"), image_size=256)
    assert model.name == "gmf_sam_test"
    assert model.record()["image_size"] == 256
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    answers = []
    for predictor in (model.predictor, SamPredictor(sam)):
        predictor.set_image(image)
        answers.append(predictor.predict(box=np.array([5, 5, 30, 30]))[2])
    assert np.array_equal(*answers)


@pytest.fixture
def shallow(monkeypatch):
    """A ViT-B of one block, in segment-anything's registry in the place of the whole."""

    def build(checkpoint=None):
        return _build_sam(768, 1, 12, [0], checkpoint)

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", build)
    return build


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_sams_own(shallow, tmp_path, suffix):
    state_dict, path = shallow().state_dict(), tmp_path / f"sam{suffix}"
    torch.save(state_dict, path) if suffix == ".pth" else save_file(state_dict, path)
    model = load_model(path)
    assert model.name == "vit_b"
    for key, value in model.predictor.model.state_dict().items():
        assert torch.equal(value.cpu(), state_dict[key]), key


def test_what_is_wrong_is_said(shallow, tmp_path):
    state_dict = shallow().state_dict()
    state_dict.pop("mask_decoder.iou_token.weight")
    save_file(state_dict, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match="does not fit 'vit_b'"):
        load_model(tmp_path / "part.safetensors")
    with pytest.raises(InvalidInputError, match="takes 1024 alone"):
        load_model(tmp_path / "part.safetensors", image_size=512)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not say which encoder"):
        load_model(tmp_path / "other.safetensors")


def test_weights_are_read_once(tmp_path, monkeypatch):
    path = save_weights(build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256), tmp_path / "a.safetensors")
    read, calls = weights.read_weights, []
    monkeypatch.setattr(weights, "read_weights", lambda path: calls.append(path) or read(path))
    load_model(path)
    assert calls == [path]


def test_mobile_sam(shared):
    model = load_model(shared / "weights" / "mobile_sam.safetensors")
    assert model.name == "sam_tiny_vit_5m"
