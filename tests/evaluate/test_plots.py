import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.cli import app
from groupmix_sam.errors import InvalidInputError, UnknownNameError
from groupmix_sam.evaluate import LabelledDataset, Model, Protocol, evaluate
from groupmix_sam.evaluate.dataset import decode
from groupmix_sam.evaluate.plots import draw_cells, pick_images, predict_results, save_html, save_png
from groupmix_sam.images import read_image
from groupmix_sam.visualize import draw_masks
from groupmix_sam.weights import save_weights

from .images import PlainPredictor, draw_dataset


@pytest.fixture
def data(tmp_path):
    return draw_dataset(tmp_path / "data")


@pytest.fixture
def result(data, tmp_path):
    task = LabelledDataset(data / "annotations.json", data / "images", Protocol())
    return evaluate(task, Model(PlainPredictor(), "plain"), tmp_path / "plain.json")


def test_pick_by_hand(result):
    ious = {"0.png": 0.5, "1.png": 0.2, "2.png": 0.9}
    result = replace(result, rows=[row | {"iou": ious[row["image"]]} for row in result.rows])
    assert pick_images(result, "box", "worst", 2) == ["1.png", "0.png"]
    assert pick_images(result, "point", "best", 9) == ["2.png", "0.png", "1.png"]
    randoms = {tuple(pick_images(result, "box", "random", 2, seed)) for seed in (1, 2, 3, 1)}
    assert len(randoms) > 1
    assert all(len(set(names)) == 2 for names in randoms)
    with pytest.raises(UnknownNameError, match="known are box, point"):
        pick_images(result, "circle")
    with pytest.raises(InvalidInputError, match="detections have no true mask each"):
        pick_images(replace(result, kind="detections"), "box")
    with pytest.raises(UnknownNameError, match="no way to pick images 'wurst'"):
        pick_images(result, "box", "wurst")


def test_cells_show_prompts_truth_and_masks(result, data):
    heads, ((truth, mask),) = draw_cells([result], ["1.png"], "box")
    rows = [row for row in result.rows if (row["image"], row["prompt"]) == ("1.png", "box")]
    rows.sort(key=lambda row: row["area"], reverse=True)
    assert heads == ["labels", "plain"]
    for cell, which in ((truth, "truth"), (mask, "mask")):
        expected = draw_masks(read_image(data / "images" / "1.png"), [decode(row, which) for row in rows])
        for row in rows:
            expected = draw_masks(np.asarray(expected), [], box=np.array(row["given"]["box"]))
        assert np.array_equal(np.asarray(cell.image), np.asarray(expected))
    assert truth.caption == "1.png"
    assert mask.caption == f"IoU {np.mean([row['iou'] for row in rows]):.3f}, mean of 2"


def test_png_and_html_hold_every_cell(result, tmp_path):
    heads, cells = draw_cells([result, replace(result, model={"name": "<b>", "sha256": None})], ["0.png", "2.png"], "point")
    save_png(heads, cells, tmp_path / "a.png", width=96)
    with Image.open(tmp_path / "a.png") as png:
        assert png.size == (3 * (96 + 8) + 8, 28 + 2 * (64 + 28))
        assert np.array_equal(np.asarray(png)[28:92, 8:104], np.asarray(cells[0][0].image))
        assert np.array_equal(np.asarray(png)[120:184, 112:208], np.asarray(cells[1][1].image))
    save_html(heads, cells, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<th>&lt;b&gt;</th>" in page
    assert cells[1][1].caption in page
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(images) == 6
    with Image.open(io.BytesIO(base64.b64decode(images[4]))) as jpeg:
        assert abs(np.asarray(jpeg, dtype=float) - np.asarray(cells[1][1].image)).mean() < 6
    assert "http" not in page, "nothing is fetched"


def test_models_on_prompts(data, tmp_path):
    (tmp_path / "p.csv").write_text("image,x,y\n1.png,40,30\n")
    models = [Model(PlainPredictor(), "a"), Model(PlainPredictor(), "b"), Model(PlainPredictor(), "c")]
    results = predict_results(models, data / "images", tmp_path / "p.csv")
    heads, (line,) = draw_cells(results, ["1.png"], "point")
    assert heads == ["a", "b", "c"]
    assert [cell.caption for cell in line] == ["1.png", "IoU 1.000", "IoU 1.000"]
    with pytest.raises(InvalidInputError, match="give two or more"):
        predict_results(models[:1], data / "images", tmp_path / "p.csv")


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def test_command(result, data, tmp_path):
    out = tmp_path / "c.png"
    done = run("compare", tmp_path / "plain.json", "--prompt-kind", "point", "--rows", "2", "--output", out)
    names = ", ".join(pick_images(result, "point", "worst", 2))
    assert done.stdout == f"wrote {out} and {out.with_suffix('.html')}: {names}\n"
    save_png(*draw_cells([result], names.split(", "), "point"), tmp_path / "d.png")
    assert out.read_bytes() == (tmp_path / "d.png").read_bytes()
    weights = save_weights(build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256), tmp_path / "a.safetensors")
    (tmp_path / "p.csv").write_text("image,x,y\n1.png,24,20\n")
    arguments = ["--images", data / "images", "--prompts", tmp_path / "p.csv", "--output", tmp_path / "e.png"]
    assert run("compare", weights, weights, *arguments).stdout.endswith(": 1.png\n")
    with pytest.raises(InvalidInputError, match="models need images and prompts"):
        run("compare", weights, weights)
    with pytest.raises(InvalidInputError, match=r"ends in \.png"):
        run("compare", tmp_path / "plain.json", "--output", "a.jpg")
