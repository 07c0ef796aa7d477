import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.cli import app
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.evaluate import Model, Protocol, evaluate, load_result
from groupmix_sam.evaluate.detections import DetectionDataset, average_precision
from groupmix_sam.files import sha256
from groupmix_sam.masks import decode_rle
from groupmix_sam.weights import save_weights

from .images import PlainPredictor, draw_dataset


@pytest.fixture
def data(tmp_path):
    """Each instance's box, some of them moved, doubled or of another image's class."""
    folder = draw_dataset(tmp_path / "data", count=4)
    rng, found = np.random.default_rng(0), []
    for a in json.loads((folder / "annotations.json").read_text())["annotations"]:
        left, top, width, height = a["bbox"]
        for _ in range(rng.integers(0, 3)):
            # SAM's stand-in takes the upper half, so that boxes of twice the height give the whole
            box = [left + rng.integers(0, 3), top, width, height * rng.choice([1, 2])]
            found.append({"image_id": a["image_id"], "category_id": 1, "bbox": list(map(float, box)), "score": rng.random()})
    (folder / "found.json").write_text(json.dumps(found))
    return folder


def task(data, limit=None):
    return DetectionDataset(data / "found.json", data / "annotations.json", data / "images", Protocol(), limit)


@pytest.mark.parametrize(("limit", "ids"), [(None, [10, 11, 12, 13]), (2, [10, 11, 12, 13]), (2, [13, 11, 12, 10])])
def test_ap_is_pycocotools(data, tmp_path, limit, ids):
    """Of the first images in the order of the file, whatever their ids."""
    labels = json.loads((data / "annotations.json").read_text())
    labels["images"].sort(key=lambda image: ids.index(image["id"]))
    (data / "annotations.json").write_text(json.dumps(labels))
    result = evaluate(task(data, limit), Model(PlainPredictor(), "plain"), tmp_path / "r.json")
    ours = average_precision(load_result(tmp_path / "r.json"), data / "annotations.json")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data / "annotations.json"))
        masks = [{**{k: row[k] for k in ("image_id", "category_id", "score")}, "segmentation": rle(row)} for row in result.rows]
        theirs = COCOeval(truth, truth.loadRes(masks), "segm")
        theirs.params.imgIds = ids[:limit]
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    assert list(ours.values()) == pytest.approx(theirs.stats[:6], abs=1e-9)
    assert 0.05 < ours["AP"] < 0.95


def test_a_box_that_shows_nothing_has_an_empty_mask(data):
    """Whatever the model would have made of it: without an area, or outside the image."""
    found = [
        {"image_id": 10, "category_id": 1, "bbox": box, "score": 0.5}
        for box in ([5, 5, 0, 10], [5, 5, 10, 0], [9000, 5, 10, 10], [5, 5, 10, 10])
    ]
    (data / "found.json").write_text(json.dumps(found))
    ours = task(data)
    rows = ours.measure(PlainPredictor(), ours.images()[0])
    areas = [int(decode_rle(rle(row)).sum()) for row in rows]
    assert areas[:3] == [0, 0, 0]
    assert areas[3] > 0
    assert [row["predicted_iou"] for row in rows[:3]] == [0.0, 0.0, 0.0]


def rle(row):
    return {"size": row["size"], "counts": row["mask"]}


def test_command(data, tmp_path):
    weights = save_weights(build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256), tmp_path / "a.safetensors")
    args = ["evaluate", data, "--detections", data / "found.json", "--checkpoint", weights, "--image-size", 256]
    args += ["--output", tmp_path / "r.json"]
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0
    ap = average_precision(load_result(tmp_path / "r.json"), data / "annotations.json")
    assert done.stdout.startswith(f"AP {ap['AP']:.3f}, AP50 {ap['AP50']:.3f}")
    other = CliRunner().invoke(app, [*map(str, args[:-1]), str(tmp_path / "s.json"), "--reference", str(weights)])
    assert other.stdout.count(f"gmf_sam_test ({sha256(weights)[:8]}): AP {ap['AP']:.3f}, AP50") == 2
    with pytest.raises(InvalidInputError, match="compare their AP"):
        CliRunner().invoke(app, ["evaluate", "--compare", *[str(tmp_path / "r.json")] * 2], catch_exceptions=False)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]'])
def test_bad_files(data, content):
    (data / "found.json").write_text(content)
    with pytest.raises(InvalidInputError, match="holds no detections"):
        task(data)
