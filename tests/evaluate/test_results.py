import hashlib
import json
import shutil

import numpy as np
import pytest

from groupmix_sam.errors import ImageReadError, InvalidInputError
from groupmix_sam.evaluate import LabelledDataset, Model, Protocol, ReferenceDataset, evaluate, load_result
from groupmix_sam.evaluate.dataset import decode

from .images import PlainPredictor, draw_dataset


class Killed(PlainPredictor):
    """Dies at the image after the n-th."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def set_image(self, image):
        if self.images == self.after:
            raise KeyboardInterrupt
        super().set_image(image)


@pytest.fixture
def task(tmp_path):
    data = draw_dataset(tmp_path / "data", count=5)
    return LabelledDataset(data / "annotations.json", data / "images", Protocol())


@pytest.fixture
def whole(task, tmp_path):
    return evaluate(task, Model(PlainPredictor(), "plain", "hash"), tmp_path / "whole.json")


def test_saved_and_loaded(whole, tmp_path):
    assert load_result(tmp_path / "whole.json") == whole
    assert whole.versions.keys() >= {"groupmix-sam", "python", "torch", "timm", "pycocotools", "numpy"}
    assert whole.model == {"name": "plain", "sha256": "hash", "image_size": 1024}
    assert len(whole.data["sha256"]) == 64
    assert [p.name for p in tmp_path.glob("whole*")] == ["whole.json"], "nothing is left of the parts"


@pytest.mark.parametrize("cut", [0, 7])
def test_resumes_after_a_kill(task, whole, tmp_path, cut):
    """Even one in the middle of a line: only what is missing is done."""
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Model(Killed(3), "plain", "hash"), out)
    assert not out.exists()
    (part,) = (tmp_path / "r.json.parts").iterdir()
    content = part.read_bytes()
    part.write_bytes(content[: len(content) - cut])
    again = PlainPredictor()
    assert evaluate(task, Model(again, "plain", "hash"), out).rows == whole.rows
    assert again.images == (3 if cut else 2)


def test_a_cut_first_line(task, whole, tmp_path):
    (tmp_path / "r.json.parts").mkdir()
    (tmp_path / "r.json.parts" / "0.jsonl").write_text('{"kind": "lab')
    assert evaluate(task, Model(PlainPredictor(), "plain", "hash"), tmp_path / "r.json").rows == whole.rows


def test_what_is_done_is_not_done_again(task, whole, tmp_path, capsys):
    assert evaluate(task, Model(Killed(0), "plain", "hash"), tmp_path / "whole.json") == whole
    assert f"already evaluated: the result is read from {tmp_path / 'whole.json'}\n" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_any_number_of_processes_gives_the_same(task, whole, tmp_path, monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    results = []
    for rank in reversed(range(processes)):
        monkeypatch.setenv("RANK", str(rank))
        model = Model(PlainPredictor(), "plain", "hash")
        results.append(evaluate(task, model, tmp_path / "r.json"))
        assert model.predictor.images == len(range(rank, 5, processes))
    assert results[:-1] == [None] * (processes - 1)
    assert results[-1] == whole
    assert load_result(tmp_path / "r.json") == whole


def test_another_number_of_processes_goes_on(task, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate(task, Model(PlainPredictor(), "plain", "hash"), tmp_path / "r.json") is None
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    model = Model(PlainPredictor(), "plain", "hash")
    assert evaluate(task, model, tmp_path / "r.json") == whole
    assert model.predictor.images == 3


def test_another_evaluation_is_not_mixed_in(task, whole, tmp_path):
    other = LabelledDataset(task.file, task.folder, Protocol(mask_selection="oracle"))
    with pytest.raises(InvalidInputError, match=r"whole.json is of another evaluation, its protocol's prompts is"):
        evaluate(other, Model(PlainPredictor(), "plain", "hash"), tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Model(Killed(1), "plain", "hash"), tmp_path / "r.json")
    with pytest.raises(InvalidInputError, match=r"r.json.parts is of another evaluation, its model's name is 'plain'"):
        evaluate(task, Model(PlainPredictor(), "other", "hash"), tmp_path / "r.json")


def test_other_images_of_the_same_names_are_another_evaluation(task, whole, tmp_path):
    digests = {f"{i}.png": hashlib.sha256((task.folder / f"{i}.png").read_bytes()).hexdigest() for i in range(5)}
    assert whole.data["images_sha256"] == hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Model(Killed(1), "plain", "hash"), tmp_path / "r.json")
    shutil.copy(task.folder / "1.png", task.folder / "0.png")
    for name in ("whole.json", "r.json"):
        with pytest.raises(InvalidInputError, match=rf"{name}.* is of another evaluation, its data's images_sha256 is"):
            evaluate(task, Model(PlainPredictor(), "plain", "hash"), tmp_path / name)
    (task.folder / "0.png").unlink()
    with pytest.raises(ImageReadError, match=r"an image in .* cannot be read"):
        task.record()


def test_nothing_counts(task, tmp_path):
    empty = LabelledDataset(task.file, task.folder, Protocol(min_mask_area=10**6))
    with pytest.raises(InvalidInputError, match=r"nothing in .* is evaluated"):
        evaluate(empty, Model(PlainPredictor(), "plain", "hash"), tmp_path / "r.json")


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"format": 1, "kind": "labelled"})])
def test_no_result(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InvalidInputError, match="is no result of `groupmix-sam evaluate`"):
        load_result(tmp_path / "r.json")


class Whole(PlainPredictor):
    """Another predictor, which takes everything for the mask."""

    def predict(self, *args, **kwargs):
        masks, scores, logits = super().predict(*args, **kwargs)
        return np.ones_like(masks), scores, logits


def test_a_model_without_a_hash_takes_nothing_from_another(task, tmp_path, monkeypatch):
    """Neither a result nor a part of one nor a reference's masks: both are "mine", and one is not the other."""
    first = evaluate(task, Model(PlainPredictor(), "mine"), tmp_path / "r.json")
    with pytest.raises(InvalidInputError, match="mine has no sha256 that says whether it is of this model"):
        evaluate(task, Model(Whole(), "mine"), tmp_path / "r.json")
    assert load_result(tmp_path / "r.json") == first
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Model(Killed(2), "mine"), tmp_path / "other.json")
    second = evaluate(task, Model(Whole(), "mine"), tmp_path / "other.json")
    assert {row["image"] for row in second.rows} == {row["image"] for row in first.rows}
    assert all(decode(row, "mask").all() for row in second.rows)
    mine, model = Model(PlainPredictor(), "mine"), Model(PlainPredictor(), "plain", "hash")
    evaluate(ReferenceDataset(task.folder, Protocol(), mine, 2), model, tmp_path / "by_mine.json")
    with pytest.raises(InvalidInputError, match="mine has no sha256"):
        evaluate(ReferenceDataset(task.folder, Protocol(), mine, 2), model, tmp_path / "by_mine.json")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInputError, match="which several processes need"):
        evaluate(task, Model(PlainPredictor(), "mine"), tmp_path / "shared.json")
