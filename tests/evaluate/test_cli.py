import json

import pytest
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.cli import app
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.evaluate import compare_text, load_result, summary_text
from groupmix_sam.weights import save_weights

from .images import draw_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("cli") / "drawn", count=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in ("a", "b"):
        save_weights(build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256), folder / f"{name}.safetensors")
    return folder


def run(*args):
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_evaluate_prints_what_it_wrote(data, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--image-size", 256, "--prompt-kind", "clicks-2", "--prompt-kind", "box", "--crowds"]
    out = run("evaluate", data, "--checkpoint", weights / "a.safetensors", *options)
    (path,) = (tmp_path / "runs" / "evaluate").iterdir()
    assert path.name.startswith("drawn-gmf_sam_test-")
    result = load_result(path)
    assert out == f"{summary_text(result)}\nwrote {path.relative_to(tmp_path)}\n"
    assert result.protocol["prompts"] == {"clicks-2": "best-of-3", "box": "single"}
    assert len(result.rows) == 2 * 2 * 3


def test_labels_elsewhere_a_reference_and_a_comparison(data, weights, tmp_path):
    args = ["evaluate", data / "images", "--annotations", data / "annotations.json", "--preset", "nanosam"]
    out = run(
        *(*args, "--checkpoint", weights / "a.safetensors", "--reference", weights / "b.safetensors"),
        *("--output", tmp_path / "a.json"),
    )
    a, (b,) = tmp_path / "a.json", tmp_path.glob("images-nanosam-gmf_sam_test-*.json")
    comparison = compare_text(load_result(b), load_result(a))
    assert out == f"{summary_text(load_result(a), load_result(b))}\n{comparison}\nwrote {a}\n"
    assert run("evaluate", "--compare", b, a) == comparison + "\n"
    assert len(load_result(a).rows) == 6, "crowds count"
    again = run(*args, "--checkpoint", weights / "a.safetensors", "--reference", b, "--output", a)
    assert again == out, "what is done is read"


def test_agreement(data, weights, tmp_path):
    (tmp_path / "hands.csv").write_text("image,x,y\n0.png,20,20\n1.png,64,30\n1.png,24,20\n")
    args = ["evaluate", data / "images", "--checkpoint", weights / "a.safetensors", "--reference", weights / "a.safetensors"]
    run(*args, "--prompts", tmp_path / "hands.csv", "--output", tmp_path / "r.json")
    result = load_result(tmp_path / "r.json")
    assert [row["iou"] for row in result.rows] == [1.0] * len(result.rows), "a model agrees with itself"
    assert result.data["reference"]["name"] == "gmf_sam_test"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "there is no folder None"),
        (["nowhere"], "there is no folder nowhere"),
        (["DATA/images"], "images has no labels, there is no annotations.json in it: add --reference and --points-per-side"),
        (["DATA/images", "--annotations", "nowhere.json"], "nowhere.json cannot be read as JSON"),
        (["DATA/images", "--points-per-side", "3"], "evaluation without labels needs a reference"),
        (["DATA/images", "--points-per-side", "3", "--prompts", "p.csv"], "exclude each other"),
        (["DATA", "--prompt-kind", "circle"], "the prompt is 'circle'"),
        (["DATA", "--detections", "d.json", "--points-per-side", "3"], "--detections is about labels"),
        (["DATA", "--detections", "d.json", "--prompts", "p.csv"], "--detections is about labels"),
        (["DATA", "--annotations", "a.json", "--points-per-side", "3"], "--annotations is about labels"),
        (["DATA", "--ignore-exif", "--points-per-side", "3"], "--ignore-exif is about labels"),
        (["DATA", "--detections", "d.json", "--prompt-kind", "box"], "leave out --prompt-kind"),
        (["DATA", "--compare", "a.json", "b.json"], "--compare reads two results and evaluates nothing: leave out DATA"),
        (["--compare", "a.json", "b.json", "--reference", "c.json"], "evaluates nothing: leave out --reference"),
    ],
)
def test_what_is_wrong_is_said(data, args, message):
    with pytest.raises(InvalidInputError, match=message):
        run("evaluate", *(arg.replace("DATA", str(data)) for arg in args))


def test_result_is_plain_json(data, weights, tmp_path):
    args = ["--checkpoint", weights / "a.safetensors", "--image-size", 256, "--limit", 1]
    run("evaluate", data, *args, "--output", tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["data"]["images"] == 1
    assert content["rows"][0].keys() >= {"image", "id", "prompt", "given", "iou", "boundary_iou", "predicted_iou", "mask"}
