import pytest
from PIL import Image

from groupmix_sam.errors import InvalidInputError
from groupmix_sam.evaluate import Model, Protocol, ReferenceDataset, evaluate

from .images import PlainPredictor, draw_dataset


@pytest.fixture
def images(tmp_path):
    return draw_dataset(tmp_path / "data") / "images"


class Larger(PlainPredictor):
    """As the plain one, but of points it thinks the third best."""

    def predict(self, *args, **kwargs):
        masks, scores, logits = super().predict(*args, **kwargs)
        return masks, scores[[0, 2, 1]] if len(scores) == 3 else scores, logits


def test_agreement_by_hand(images, tmp_path):
    """Squares of 16 within squares of 24 at a point; the same half of a box."""
    (tmp_path / "p.csv").write_text("image,x,y,left,top,right,bottom\n1.png,40,30,,,,\n0.png,,,10,10,30,40\n")
    task = ReferenceDataset(images, Protocol(), Model(Larger(), "larger"), tmp_path / "p.csv")
    point, box = evaluate(task, Model(PlainPredictor(), "plain"), tmp_path / "r.json").rows
    assert (point["image"], point["prompt"], point["iou"]) == ("1.png", "point", pytest.approx(16**2 / 24**2))
    assert point["area"] == 24**2
    assert point["box_baseline_iou"] == 1, "the truth is a box"
    assert (box["image"], box["prompt"], box["iou"], box["box_baseline_iou"]) == ("0.png", "box", 1, 0.5)


def test_an_oracle_is_the_model_alone(images, tmp_path):
    """It finds the reference's square of 24 among its three."""
    (tmp_path / "p.csv").write_text("image,x,y\n1.png,40,30\n")
    task = ReferenceDataset(images, Protocol(mask_selection="oracle"), Model(Larger(), "larger"), tmp_path / "p.csv")
    (row,) = evaluate(task, Model(PlainPredictor(), "plain"), tmp_path / "r.json").rows
    assert row["iou"] == 1


def test_grid_keeps_what_the_reference_is_sure_of(images, tmp_path):
    """Three images of 96 x 64, four points each at the middles of the quarters; nothing is surer than 0.9."""
    plain = Model(PlainPredictor(), "plain")
    task = ReferenceDataset(images, Protocol(), plain, 2)
    rows = evaluate(task, plain, tmp_path / "r.json").rows
    assert len(rows) == 12
    assert [row["given"]["points"] for row in rows[:4]] == [[[24, 16]], [[72, 16]], [[24, 48]], [[72, 48]]]
    assert task.measure(plain.predictor, "0.png") == rows[:4]
    assert ReferenceDataset(images, Protocol(), plain, 2, confidence=0.95).measure(plain.predictor, "0.png") == []


def test_renamed_images_of_a_grid_are_another_evaluation(images, tmp_path):
    plain = Model(PlainPredictor(), "plain", "hash")
    before = evaluate(ReferenceDataset(images, Protocol(), plain, 2), plain, tmp_path / "r.json")
    (images / "0.png").rename(images / "3.png")
    task = ReferenceDataset(images, Protocol(), plain, 2)
    assert task.record() == before.data | {"images_sha256": task.record()["images_sha256"]}
    with pytest.raises(InvalidInputError, match="its data's images_sha256 is"):
        evaluate(task, plain, tmp_path / "r.json")


def test_the_reference_is_asked_once(images, tmp_path):
    """Its masks are kept by all that they depend on; what is damaged is asked for anew."""
    reference, model = Model(Larger(), "larger", "hash"), Model(PlainPredictor(), "plain")

    def rows(**options):
        task = ReferenceDataset(
            images, Protocol(), reference, options.pop("points_per_side", 2), **{"truths": tmp_path / "kept", **options}
        )
        return [row for image in task.images() for row in task.measure(model.predictor, image)]

    expected = rows(truths=None)
    assert reference.predictor.images == 3
    assert len(expected) == 12
    assert rows() == rows() == expected
    assert reference.predictor.images == 6, "once for all three, and then no more"
    assert rows(limit=1) == expected[:4]
    assert reference.predictor.images == 6
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == 3
    kept[0].write_text(kept[0].read_text()[:-9])
    kept[1].write_text('{"0": {"size": [64, 96], "counts": "1"}}')
    assert rows() == expected
    assert reference.predictor.images == 8
    assert rows(confidence=0.95) == []
    assert rows(points_per_side=1) == rows(points_per_side=1, truths=None)
    assert reference.predictor.images == 8 + 3 + 3 + 3
    Image.new("RGB", (96, 64)).save(images / "0.png")
    assert rows() == expected
    assert reference.predictor.images == 18, "another image of the same name"
    reference = Model(Larger(), "larger")
    assert rows() == rows() == expected
    assert reference.predictor.images == 6, "nothing is kept of a model that nothing tells from others"


def test_prompts_that_do_not_fit(images, tmp_path):
    plain = Model(PlainPredictor(), "plain")
    (tmp_path / "p.csv").write_text("image,x,y\nnone.png,1,2\n")
    with pytest.raises(InvalidInputError, match=r"none\.png, which .* names, is not there"):
        ReferenceDataset(images, Protocol(), plain, tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("image,x,y\n0.png,100,2\n")
    with pytest.raises(InvalidInputError, match=r"0\.png: the point \(100, 2\) is outside"):
        ReferenceDataset(images, Protocol(), plain, tmp_path / "p.csv").measure(plain.predictor, "0.png")
    with pytest.raises(InvalidInputError, match="points_per_side is 0"):
        ReferenceDataset(images, Protocol(), plain, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="has no image in it"):
        ReferenceDataset(tmp_path / "empty", Protocol(), plain, 2)
