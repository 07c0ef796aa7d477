"""The examples as they stand: each script and the notebook, with the weights that ship where that is quick."""

import csv
import importlib.util
import os
import re
import runpy
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import groupmix_sam.distill  # noqa: F401
from groupmix_sam import build_sam_groupmix
from groupmix_sam.evaluate import read_prompts
from groupmix_sam.images import read_image
from groupmix_sam.weights import save_weights

from .distill.conftest import save_mobile_sam

EXAMPLES = Path(__file__).parents[1] / "examples"
COFFEE = EXAMPLES / "coffee.jpg"


def load(script):
    """Import a script, which then does nothing."""
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script with arguments in an empty folder; return its globals and what it printed."""

    def run(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        found = runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return found, capsys.readouterr().out

    return run


def test_quickstart(run):
    found, out = run("quickstart.py")
    assert out.endswith("wrote quickstart.png\n")
    overlay, photo = read_image("quickstart.png").astype(int), read_image(COFFEE).astype(int)
    changed = np.abs(overlay - photo).sum(-1) > 30
    assert changed[130, 275], "the cup is tinted"
    assert changed[300, 365], "the spoon is tinted"
    assert not changed[390:, :50].any(), "the table is not"
    assert 0.15 < found["cup"].mean() < 0.30, "the cup is about a fifth of the photo"
    assert f"{100 * found['cup'].mean():.1f} % of the picture" in out


def test_timm_features(run):
    _, out = run("timm_features.py")
    assert "(1, 3, 688, 1024) -> (1, 256, 43, 64)" in out
    assert "stages.3: stride 16, (1, 160, 43, 64)" in out
    sheet = read_image("features.png")
    assert sheet.shape == (400, 1200, 3)
    heat = sheet[:, 600:, 0]
    assert heat[290, 365] > 230, "a place is like itself"
    assert heat[350:, :100].max() < 60, "the table is not like a spoon"


def test_adapt_to_your_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["groupmix_sam.distill.adapt"], "POINTS", 1)  # to be quick
    teacher, weights = save_mobile_sam(tmp_path / "mobile_sam.pt"), tmp_path / "tiny.safetensors"
    save_weights(build_sam_groupmix(None, encoder="gmf_sam_test"), weights)
    tiny = ["--checkpoint", weights, "--encoder", "gmf_sam_test", "--minutes", 0.001, "--count", 2]
    _, out = run("adapt_to_your_line.py", "--teacher", teacher, *tiny)
    assert "agreement with the teacher on frames that were held out" in out
    ious = [float(iou) for iou in re.findall(r"by box, (?:before|after): (.*)", out)]
    assert len(ious) == 2
    assert all(0 <= iou <= 1 for iou in ious)
    assert read_image("runs/line/masks.png").shape == (360, 480, 3)
    assert len(list(Path("runs/line_frames").iterdir())) == 2
    assert build_sam_groupmix("runs/line/weights", encoder="gmf_sam_test").image_encoder.img_size == 1024


def test_drawn_frames_have_the_masks_that_they_show():
    draw = load("adapt_to_your_line").draw_frame
    image, parts = draw(0)
    again, _ = draw(0)
    assert np.array_equal(image, again)
    assert len(parts) == 5
    for (left, top, right, bottom), mask in parts:
        assert mask[top:bottom, left:right].sum() == mask.sum(), "the box holds all of it"
        assert mask[top, left:right].any(), "and is tight"
        assert mask[bottom - 1, left:right].any()
        assert image[mask].mean() > image.mean() + 20, "parts are brighter than the belt"


def test_worker_hands_from_given_centres(run):
    run("worker_hands.py", COFFEE, "--hand", "365,290", "--hand", "360,300")
    with open("hands/hands.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["picture", "x", "y"],
            ["coffee.jpg", "365.0", "290.0"],
            ["coffee.jpg", "360.0", "300.0"],
        ]
    assert list(read_prompts("hands/hands.csv")) == ["coffee.jpg"], "evaluate reads it"
    overlay, photo = read_image("hands/coffee_hands.png").astype(int), read_image(COFFEE).astype(int)
    changed = np.abs(overlay - photo).sum(-1) > 30
    assert changed[300, 365], "the spoon is tinted"
    assert not changed[390:, :50].any(), "the table is not"


def test_worker_hands_says_how_to_get_a_detector(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(SystemExit, match=r"mediapipe 0\.10\.21 is not installed"):
        run("worker_hands.py", COFFEE)


def test_worker_hands_by_mediapipe(shared, run):
    pytest.importorskip("mediapipe.python.solutions.hands", reason="needs mediapipe 0.10.21, which needs NumPy 1")
    (photo,) = (shared / "data" / "eval" / "tools" / "images").glob("2023-08-17_12-11-01_png*")
    run("worker_hands.py", photo)
    (prompt,) = read_prompts("hands/hands.csv")[photo.name]
    x, y = prompt.points[0]
    assert 80 < x < 190, "the one hand is at the upper left"
    assert y < 80


def test_tour(tmp_path, monkeypatch):
    """The notebook runs, and prints and draws where the stored one does."""
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    kept = kinds(notebook)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # about progress bars
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    assert kinds(notebook) == kept
    assert sum(cell.count("execute_result") for cell in kept) == 5


def kinds(notebook):
    return [[output.output_type for output in cell.get("outputs", [])] for cell in notebook.cells]
