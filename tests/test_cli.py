from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segment_anything import SamPredictor
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.cli import app, main
from groupmix_sam.images import draw_masks, read_image
from groupmix_sam.weights import save_weights

COFFEE = Path(__file__).parents[1] / "examples" / "coffee.jpg"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256)
    path = save_weights(sam, tmp_path_factory.mktemp("cli") / "tiny.safetensors")
    return ["--checkpoint", str(path), "--encoder", "gmf_sam_test", "--image-size", "256"]


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def failure(capsys, *args):
    """Return what the real entry point prints, and check that it exits with 1."""
    import sys

    old, sys.argv = sys.argv, ["groupmix-sam", *map(str, args)]
    try:
        with pytest.raises(SystemExit) as exit_:
            main()
    finally:
        sys.argv = old
    assert exit_.value.code == 1
    return capsys.readouterr().err


def test_segment_draws_what_sam_predictor_says(tiny, tmp_path):
    out = tmp_path / "mask.png"
    done = run("segment", COFFEE, "--box", "170,16,420,312", "--point", "275,130", "--output", out, *tiny)
    assert done.exit_code == 0
    assert f"wrote {out}" in done.stdout
    sam = build_sam_groupmix(tiny[1], encoder="gmf_sam_test", image_size=256)
    predictor = SamPredictor(sam)
    image = read_image(COFFEE)
    predictor.set_image(image)
    point, box = np.array([[275.0, 130.0]]), np.array([170.0, 16, 420, 312])
    masks, _, _ = predictor.predict(point, np.array([1]), box, multimask_output=False)
    expected = draw_masks(image, [masks[0]], points=point, labels=np.array([1]), box=box)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing says what to segment"),
        (["--point", "12"], "'12' is not x,y"),
        (["--point", "a,b"], "'a,b' is not x,y"),
        (["--point", "600,5"], "outside the picture of 600 x 400 pixels"),
        (["--point", "5,5", "--output", "nowhere/a.png"], "in a folder that exists"),
        (["--point", "5,5", "--output", "a.jpg"], "ends in .png"),
        (["--box", "9,9,5,5"], "reversed or has no area"),
        (["--box", "1,2,3"], "is not left,top,right,bottom"),
        (["--point", "5,5", "--encoder", "gmf_sam_228"], "did you mean gmf_sam_2282"),
        (["--point", "5,5", "--checkpoint", "no.safetensors"], "there is no weights file no.safetensors"),
        (["--point", "5,5", "--checkpoint", "no.safetensors", "--image-size", "1000"], "use 992 or 1008"),
    ],
)
def test_segment_says_what_is_wrong(capsys, args, message):
    assert message in failure(capsys, "segment", COFFEE, *args)


@pytest.mark.parametrize("size", [(1, 1), (20000, 50)])
def test_odd_shapes(tiny, tmp_path, size):
    Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "odd.png")
    out = tmp_path / "mask.png"
    assert run("segment", tmp_path / "odd.png", "--point", "0,0", "--output", out, *tiny).exit_code == 0
    with Image.open(out) as overlay:
        assert overlay.size == size


def test_too_narrow(capsys, tmp_path):
    Image.new("RGB", (9000, 1)).save(tmp_path / "line.png")
    assert "too narrow to be resized to 1024" in failure(capsys, "segment", tmp_path / "line.png", "--point", "0,0")


def test_distill_refuses_before_the_teacher_works(capsys, tmp_path):
    assert "did you mean paper" in failure(capsys, "distill", tmp_path, "--teacher", "none.pt", "--recipe", "papers")
    assert "minutes is -1" in failure(capsys, "distill", tmp_path, "--teacher", "none.pt", "--minutes", "-1")
    assert "has no picture in it" in failure(capsys, "distill", tmp_path, "--teacher", "none.pt")


def test_no_picture(capsys, tmp_path):
    assert "there is no picture" in failure(capsys, "segment", tmp_path / "a.jpg", "--point", "1,1")


def test_info_names_versions_and_weights():
    done = run("info")
    assert done.exit_code == 0
    assert f"torch {version('torch')}" in done.stdout
    assert "gmf_sam_2282: weights ship" in done.stdout
    assert "sam_resnet18: no weights here" in done.stdout
