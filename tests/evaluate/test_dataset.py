import json

import numpy as np
import pytest
from PIL import Image

from groupmix_sam.errors import InvalidInputError
from groupmix_sam.evaluate import LabelledDataset, Model, Protocol, evaluate
from groupmix_sam.evaluate.dataset import decode, encode, load_coco

from .images import PlainPredictor, draw_dataset


@pytest.fixture
def data(tmp_path):
    return draw_dataset(tmp_path / "data")


def task(data, limit=None, **protocol):
    return LabelledDataset(data / "annotations.json", data / "images", Protocol(**protocol), limit)


def run(data, tmp_path, **protocol):
    return evaluate(task(data, **protocol), Model(PlainPredictor(), "plain"), tmp_path / "result.json")


def test_boxes_by_hand(data, tmp_path):
    """The upper half of a square is half of it; its box is all of it."""
    rows = [row for row in run(data, tmp_path, prompts=("box",)).rows if row["id"] % 100 == 2]
    assert [row["iou"] for row in rows] == [0.5, 0.5, 0.5]
    assert [row["box_baseline_iou"] for row in rows] == [1, 1, 1]
    assert [row["predicted_iou"] for row in rows] == [0.8, 0.8, 0.8]
    assert rows[0]["given"] == {"box": [60.0, 20.0, 68.0, 40.0]}
    assert [row["area"] for row in rows] == [160, 240, 320]


def test_points_by_hand(data, tmp_path):
    """About the middle of a square of 16 x 20, 16 x 16 pixels: 16 / 20."""
    row = next(row for row in run(data, tmp_path, prompts=("point",)).rows if row["id"] == 202)
    assert row["iou"] == pytest.approx(16 * 16 / (16 * 20), abs=0.1)
    truth = decode(row, "truth")
    assert truth.sum() == 320
    (x, y), mask = row["given"]["points"][0], np.zeros_like(truth)
    mask[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8] = True
    assert row["mask"] == encode(mask)
    assert row["iou"] == pytest.approx((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize(("options", "count"), [({}, 6), ({"crowds": True}, 9), ({"min_mask_area": 300}, 4)])
def test_what_counts(data, tmp_path, options, count):
    """Two instances and a crowd on each of three images; the squares have 160, 240 and 320 pixels."""
    assert len(run(data, tmp_path, prompts=("box",), **options).rows) == count


def test_clicks_keep_every_step(data, tmp_path):
    rows = run(data, tmp_path, prompts=("clicks-3",)).rows
    assert all(len(row["ious"]) == 3 == len(row["given"]["labels"]) for row in rows)
    assert all(row["iou"] == row["ious"][-1] for row in rows)


def test_a_image_without_annotations_costs_nothing(data, tmp_path):
    file = data / "annotations.json"
    coco = json.loads(file.read_text())
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != 11]
    file.write_text(json.dumps(coco))
    model = Model(PlainPredictor(), "plain")
    assert {row["image"] for row in evaluate(task(data), model, tmp_path / "r.json").rows} == {"0.png", "2.png"}
    assert model.predictor.images == 2


@pytest.mark.parametrize("bbox", [None, [60, 20, 0, 20]])
def test_boxes_that_are_missing_or_empty_are_the_masks(data, tmp_path, bbox):
    file = data / "annotations.json"
    expected = run(data, tmp_path, prompts=("box",)).rows[1]
    coco = json.loads(file.read_text())
    for annotation in coco["annotations"]:
        annotation["bbox"] = bbox
    file.write_text(json.dumps(coco))
    row = evaluate(task(data, prompts=("box",)), Model(PlainPredictor(), "plain"), tmp_path / "again.json").rows[1]
    assert row == expected


def test_a_mask_that_cannot_be_read_is_told(data):
    file = data / "annotations.json"
    coco = json.loads(file.read_text())
    coco["annotations"][1]["segmentation"] = [["a"]]
    file.write_text(json.dumps(coco))
    with pytest.raises(InvalidInputError, match=r"annotation 2 of .* has no readable mask"):
        task(data).measure(PlainPredictor(), "0.png")


def test_a_turned_image_is_told(data):
    Image.new("RGB", (64, 96)).save(data / "images" / "0.png")
    with pytest.raises(InvalidInputError, match=r"0.png has 64 x 96 pixels, its masks 96 x 64"):
        task(data).measure(PlainPredictor(), "0.png")


def test_a_missing_image_is_told_at_once(data):
    (data / "images" / "2.png").unlink()
    with pytest.raises(InvalidInputError, match=r"2\.png, which .* names, is not there"):
        task(data)
    assert task(data, limit=2).images() == ["0.png", "1.png"]


def test_a_image_that_comes_twice_is_told(data):
    """Else the annotations of all its entries but one would not count."""
    file = data / "annotations.json"
    coco = json.loads(file.read_text())
    coco["images"].append({**coco["images"][0], "id": 99})
    file.write_text(json.dumps(coco))
    with pytest.raises(InvalidInputError, match=r"has 0\.png more than once"):
        task(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no 'images' and 'annotations'"),
        ('{"images": [], "annotations": []}', "no annot"),
    ],
)
def test_bad_annotation_files(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        load_coco(tmp_path / "a.json")


def test_no_talk_on_stdout(data, capsys):
    load_coco(data / "annotations.json")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("orientation", [1, 3])
def test_labels_of_stored_pixels_are_told(data, tmp_path, caplog, orientation):
    """An image that EXIF data turn by half keeps its size, and its labels lie elsewhere: a warning, and a way to say it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(data / "images" / "0.png") as image:
        image.save(data / "images" / "0.png", exif=exif)
    dataset = LabelledDataset(data / "annotations.json", data / "images", Protocol())
    dataset.measure(PlainPredictor(), "0.png")
    assert [message.partition(" is turned upright")[0] for message in caplog.messages] == (
        [str(data / "images" / "0.png")] if orientation == 3 else []
    )
    caplog.clear()
    stored = LabelledDataset(data / "annotations.json", data / "images", Protocol(), ignore_exif=True)
    seen = Seen()
    stored.measure(seen, "0.png")
    with Image.open(data / "images" / "0.png") as image:
        assert np.array_equal(seen.image, np.asarray(image))
    assert caplog.messages == []
    assert stored.record()["ignore_exif"]
    assert "ignore_exif" not in dataset.record()


class Seen(PlainPredictor):
    def set_image(self, image):
        super().set_image(image)
        self.image = image


def test_a_file_with_a_byte_order_mark(data, tmp_path):
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + (data / "annotations.json").read_bytes())
    assert load_coco(tmp_path / "bom.json").dataset == load_coco(data / "annotations.json").dataset
