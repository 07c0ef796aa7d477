import hashlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import typer
from huggingface_hub import HfApi
from PIL import Image
from segment_anything import SamPredictor
from typer.testing import CliRunner

import groupmix_sam
from groupmix_sam import build_sam_groupmix
from groupmix_sam.annotations import from_coco, from_contours, from_labelme
from groupmix_sam.batch.engine import batch
from groupmix_sam.cli import app, main
from groupmix_sam.demo.session import load_named
from groupmix_sam.distill import ADAPT, RunOptions, adapt, distill, load_recipe
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.evaluate import ReferenceDataset, load_model, preset
from groupmix_sam.evaluate.plots import pick_images
from groupmix_sam.evaluate.profiling import measure_costs
from groupmix_sam.images import read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.automatic import everything, segment
from groupmix_sam.inference.export.exporter import export
from groupmix_sam.inference.export.parity import Thresholds
from groupmix_sam.inference.model import torch_model
from groupmix_sam.reproduce.table1 import Settings, train_encoders
from groupmix_sam.serve import Limits
from groupmix_sam.visualize import draw_masks
from groupmix_sam.weights import push_to_hub, save_weights

from .hub import running_hub

COFFEE = Path(__file__).parents[1] / "examples" / "coffee.jpg"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256)
    path = save_weights(sam, tmp_path_factory.mktemp("cli") / "tiny.safetensors")
    return ["--checkpoint", str(path)]


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def failure(capsys, *args):
    """Return what the real entry point prints, and check that it exits with 1."""
    old, sys.argv = sys.argv, ["groupmix-sam", *map(str, args)]
    try:
        with pytest.raises(SystemExit) as exit_:
            main()
    finally:
        sys.argv = old
    assert exit_.value.code == 1
    return capsys.readouterr().err


def test_segment_draws_what_sam_predictor_says(tmp_path):
    """The mask that is written is SamPredictor's but for a hair at the outline, and it is the one that is drawn."""
    drawn, written = tmp_path / "drawn.png", tmp_path / "mask.png"
    prompt = ["--box", "170,16,420,312", "--point", "275,130", "--image-size", "256"]
    for out, kind in ((drawn, "overlay"), (written, "mask")):
        done = run("segment", COFFEE, *prompt, "--format", kind, "--output", out)
        assert (done.exit_code, done.stderr) == (0, "")
        assert f"wrote {out}" in done.stdout
    predictor = SamPredictor(build_sam_groupmix(image_size=256))
    image = read_image(COFFEE)
    predictor.set_image(image)
    point, box = np.array([[275.0, 130.0]]), np.array([170.0, 16, 420, 312])
    masks, _, _ = predictor.predict(point, np.array([1]), box, multimask_output=False)
    found = np.asarray(Image.open(written)) > 0
    assert masks[0].sum() > 10_000
    assert (found & masks[0]).sum() / (found | masks[0]).sum() > 0.99
    expected = draw_masks(image, [found], points=point, labels=np.array([1]), box=box)
    assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(expected))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing says what to segment"),
        (["--point", "12"], "'12' is not x,y"),
        (["--point", "a,b"], "'a,b' is not x,y"),
        (["--point", "600,5"], "outside the image of 600 x 400 pixels"),
        (["--point", "5,5", "--output", "nowhere/a.png"], "in a folder that exists"),
        (["--point", "5,5", "--output", "a.jpg"], "ends in .png"),
        (["--box", "9,9,5,5"], "reversed or has no area"),
        (["--box", "1,2,3"], "is not left,top,right,bottom"),
        (["--point", "5,5", "--encoder", "gmf_sam_228"], "did you mean gmf_sam_2282"),
        (["--point", "5,5", "--checkpoint", "no.safetensors"], "there is no weights file no.safetensors"),
        (["--point", "5,5", "--image-size", "1000"], "use 992 or 1008"),
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
    assert "has no image in it" in failure(capsys, "distill", tmp_path, "--teacher", "none.pt")


def test_no_image(capsys, tmp_path):
    assert "there is no image" in failure(capsys, "segment", tmp_path / "a.jpg", "--point", "1,1")


def test_info_as_text_and_json(tmp_path, monkeypatch):
    """What it says is what the files and an invented installation have."""
    about = tmp_path / "groupmix_sam-9.dist-info"
    about.mkdir()
    needs = ["torch", 'pillow; extra == "a"', 'no-such-thing; extra == "b"', 'groupmix-sam[b]; extra == "c"']
    lines = ["Metadata-Version: 2.1", "Name: groupmix-sam", "Version: 9", *(f"Requires-Dist: {need}" for need in needs)]
    (about / "METADATA").write_text("\n".join([*lines, *(f"Provides-Extra: {extra}" for extra in "abc")]) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = json.loads(run("info", "--json").stdout)
    assert found["packages"]["torch"] == version("torch")
    assert found["extras"] == {"a": [], "b": ["no-such-thing"], "c": ["no-such-thing"]}
    weights = found["weights"]["gmf_sam_2282"]
    assert weights["sha256"] == hashlib.sha256(Path(weights["path"]).read_bytes()).hexdigest()
    assert weights["training"]["runs"][0]["student"] == "gmf_sam_2282"
    assert found["weights"]["sam_resnet18"] is None
    assert "CPUExecutionProvider" in found["runtimes"]["onnxruntime"]["providers"]
    assert "CPU" in found["runtimes"]["openvino"]["devices"]
    text = run("info").stdout
    assert f"torch {version('torch')}" in text
    assert f"gmf_sam_2282: weights ship, sha256 {weights['sha256'][:12]}" in text
    assert "sam_resnet18: no weights here" in text
    assert "c: lacks no-such-thing" in text


def test_info_of_damaged_weights(tmp_path, monkeypatch):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    monkeypatch.setattr("groupmix_sam.encoders.config.pretrained_file", lambda name: str(cut))
    assert "gmf_sam_2282: damaged, reinstall groupmix-sam, sha256" in run("info").stdout


def test_info_without_runtimes(monkeypatch):
    for module in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, module, None)
    text = run("info").stdout
    assert "onnxruntime: not installed" in text
    assert "openvino: not installed" in text


@pytest.fixture
def line(tmp_path):
    """A folder with two good images, one below it, and one that is cut short."""
    (tmp_path / "line" / "two").mkdir(parents=True)
    for name, size in (("a.png", (90, 60)), ("two/b.png", (50, 70))):
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path / "line" / name)
    (tmp_path / "line" / "cut.png").write_bytes((tmp_path / "line" / "a.png").read_bytes()[:300])
    return tmp_path / "line"


ALL = [part for kind in ("overlay", "mask", "coco", "contours", "labelme", "yolo") for part in ("--format", kind)]


def test_a_folder_in_every_format(tiny, line, tmp_path, capsys):
    """What can be read is written, what cannot is named, and the exit code is 1; the formats all have one mask."""
    out = tmp_path / "out"
    prompt = ["--box", "5,5,40,50", "--box", "20,8,45,40"]
    err = failure(capsys, "segment", line, *prompt, "--category", "nut", *ALL, "--tolerance", "0", "--output", out, *tiny)
    assert "skipped cut.png: " in err
    assert "1 of 3 images were skipped" in err
    assert "%|" not in err, "no progress bar where there is no terminal"
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    each = {"_overlay.png", "_mask.png", "_contours.json", ".json", ".txt"}
    assert written == {f"{name}{end}" for name in ("a", "two/b") for end in each} | {"annotations.json", "classes.txt"}
    assert (out / "classes.txt").read_text() == "nut\n"
    predictor = Predictor(build_sam_groupmix(tiny[1]))
    coco = {p.path.resolve(): p for p in from_coco(json.loads((out / "annotations.json").read_text()), out)}
    for name in ("a", "two/b"):
        image = read_image(line / f"{name}.png")
        predictor.set_image(image)
        boxes = [np.array(corners) for corners in ([5.0, 5, 40, 50], [20.0, 8, 45, 40])]
        expected = [predictor.predict(box=box, multimask_output=False)[0][0] for box in boxes]
        folder = (out / name).parent
        contours = from_contours(json.loads((out / f"{name}_contours.json").read_text()), folder)
        labelme = from_labelme(json.loads((out / f"{name}.json").read_text()), folder)
        for annotated in (coco[(line / f"{name}.png").resolve()], contours, labelme):
            assert annotated.path.resolve() == (line / f"{name}.png").resolve()
            assert [instance.category for instance in annotated.instances] == ["nut", "nut"]
        for found in (coco[(line / f"{name}.png").resolve()], contours):
            assert np.array_equal(found.masks(), expected)
        for mask, true in zip(labelme.masks(), expected, strict=True):
            assert (mask == true).mean() > 0.95
        overlay = draw_masks(image, expected, box=np.array(boxes))
        assert np.array_equal(np.asarray(Image.open(out / f"{name}_overlay.png")), np.asarray(overlay))
        assert np.array_equal(np.asarray(Image.open(out / f"{name}_mask.png")) > 0, expected[0] | expected[1])
        assert {line.split()[0] for line in (out / f"{name}.txt").read_text().splitlines()} == {"0"}


def test_stdout(tiny, line, monkeypatch):
    """The same bytes as in a file, and nothing else; what is skipped does not spoil them."""
    monkeypatch.chdir(line)
    one = ["segment", "a.png", "--point", "20,20", *tiny]
    for kind, name in (("overlay", "o.png"), ("mask", "m.png"), ("coco", "c.json"), ("yolo", "y.txt")):
        run(*one, "--format", kind, "--output", name)
        done = run(*one, "--format", kind, "--output", "-")
        assert done.stdout_bytes == (line / name).read_bytes()
        assert done.stderr == ""
    (line / "o.png").unlink()
    (line / "m.png").unlink()
    many = CliRunner().invoke(app, ["segment", ".", "--point", "20,20", "--format", "coco", "--output", "-", *tiny])
    assert many.exit_code == 1
    assert [image["file_name"] for image in json.loads(many.stdout)["images"]] == ["a.png", "two/b.png"]


def test_a_name_that_stdout_cannot_write(tiny, line, tmp_path):
    """Is escaped, and the run goes on: a terminal of Windows, and a name of Latin-1 under UTF-8."""
    (line / "cut.png").rename(line / "b高.png")
    (line / "b高.png").write_bytes((line / "a.png").read_bytes())
    command = ["segment", str(line), "--point", "5,5", "--format", "mask", "--output", str(tmp_path), *tiny]
    done = CliRunner(charset="cp1252").invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "b\\u9ad8_mask.png" in done.stdout
    assert (tmp_path / "two" / "b_mask.png").is_file()
    os.rename(line / "b高.png", os.fsencode(line) + b"/b\xe4.png")
    done = run(*command)
    assert "b\\udce4_mask.png" in done.stdout


def test_json_lines(tiny, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["segment", "line", "--point", "20,20", "--json", "--format", "mask", *tiny])
    a, cut, b = map(json.loads, done.stdout.splitlines())
    assert (a["image"], a["size"], a["files"]) == ("line/a.png", [60, 90], ["a_mask.png"])
    assert a["instances"][0]["area"] == np.count_nonzero(np.asarray(Image.open("a_mask.png")))
    assert a["instances"][0]["prompt"] == {"points": [[20, 20]], "labels": [1]}
    assert "cannot be read as an image" in cut["error"]
    assert b["files"] == [str(Path("two/b_mask.png"))]


def test_prompts_by_image(tiny, line, tmp_path):
    prompts = tmp_path / "p.csv"
    prompts.write_text("image,x,y,category\ntwo/b.png,10,20,nut\ntwo/b.png,30,40,\n")
    done = run("segment", line, "--prompts", prompts, "--format", "coco", "--output", tmp_path / "c.json", *tiny)
    assert done.exit_code == 0
    assert f"2 of 3 images have no prompt in {prompts}" in done.stderr
    (image,) = from_coco(json.loads((tmp_path / "c.json").read_text()), tmp_path)
    assert image.path == line / "two" / "b.png"
    assert [(instance.category, instance.prompt.points) for instance in image.instances] == [
        ("nut", [[10, 20]]),
        ("object", [[30, 40]]),
    ]


def test_an_exported_folder(tiny, line, tmp_path, monkeypatch):
    """Is opened in its runtime, for which the Sam itself stands here."""
    sam = build_sam_groupmix(tiny[1])
    asked = []
    (tmp_path / "config.json").touch()
    fake = lambda folder, *_: asked.append(folder) or torch_model(sam)  # noqa: E731
    monkeypatch.setattr("groupmix_sam.inference.predictor.folder_model", fake)
    done = run("segment", line / "a.png", "--point", "20,20", "--checkpoint", tmp_path, "--output", tmp_path / "o.png")
    assert (done.exit_code, asked) == (0, [tmp_path])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--point", "1,1", "--format", "masks"], "did you mean mask"),
        (["--point", "1,1", "--tolerance", "-1"], "the tolerance is -1"),
        (["--point", "1,1", "--output", "a.png"], "give a folder for several images"),
        (["--point", "1,1", "--output", "-"], "takes one file"),
        (["--point", "1,1", "--output", "-", "--format", "coco", "--json"], "both write to stdout"),
        (["--point", "1,1", "--box", "1,1,5,5", "--box", "1,1,6,6"], "any of 2 boxes"),
        (["--point", "1,1", "--prompts", "p.csv"], "--prompts excludes --point"),
        (["--prompts", "p.csv"], "p.csv has a prompt for none.png, which is not among the images"),
        (["--point", "1,1", "--checkpoint", "out", "--image-size", "512"], "out was exported: leave out encoder, image_size"),
        (["--point", "1,1", "--checkpoint", "line"], "there is no weights file line/model.safetensors"),
        (["--point", "1,1", "--checkpoint", "x" * 300], "there is no weights file xxx"),
        (["--point", "1,1", "--encoder", "vit_b"], "there is no encoder 'vit_b'"),
        (["no/*.png", "--point", "1,1"], "no file matches no/*.png"),
        (["line/a.jpg", "--point", "1,1"], "a_overlay.png would belong to both a.png and a.jpg"),
    ],
)
def test_segment_refuses(capsys, line, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("image,x,y\nnone.png,1,2\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    assert message in failure(capsys, "segment", "line", *args)


def test_what_was_drawn_is_not_segmented_again(tiny, line, monkeypatch):
    """Where the image itself is there too; an overlay alone is an image like any other."""
    monkeypatch.chdir(line)
    (line / "cut.png").unlink()
    (line / "b_mask.png").write_bytes((line / "a.png").read_bytes())  # whose image is in another folder
    command = ["segment", ".", "--point", "5,5", "--format", "overlay", "--format", "mask", *tiny]
    assert "left out" not in run(*command).stderr
    files = {path.relative_to(line).as_posix() for path in line.rglob("*.png")}
    contents = {name: (line / name).read_bytes() for name in files}
    assert files == {"a.png", "two/b.png", "b_mask.png"} | {
        f"{name}_{kind}.png" for name in ("a", "two/b", "b_mask") for kind in ("overlay", "mask")
    }
    assert "6 of 9 images are overlays or masks of others and are left out" in run(*command).stderr
    assert {path.relative_to(line).as_posix(): path.read_bytes() for path in line.rglob("*.png")} == contents
    run("everything", "a_overlay.png", "--points-per-side", "2", *tiny)
    assert (line / "a_overlay_overlay.png").exists()


def test_ctrl_c_keeps_what_is_done(tiny, line, tmp_path, monkeypatch, capsys):
    calls = []

    def find(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr("groupmix_sam.inference.automatic.segment", find)
    (line / "cut.png").unlink()
    out = tmp_path / "c.json"
    err = failure(capsys, "segment", line, "--point", "1,1", "--format", "coco", "--output", out, *tiny)
    assert "stopped after 1 of 2 images" in err
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["line/a.png"]


def test_an_error_keeps_what_is_done(tiny, line, tmp_path, monkeypatch):
    monkeypatch.setattr("groupmix_sam.inference.automatic.segment", Mock(side_effect=[[], MemoryError]))
    out = tmp_path / "c.json"
    with pytest.raises(MemoryError):
        run("segment", line, "--point", "1,1", "--format", "coco", "--output", out, *tiny)
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["line/a.png"]


def test_everything_is_the_function(tiny, line, tmp_path):
    """With its cost told beforehand, the time after the first, and no prompts in the overlay."""
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_mask_area": 5}
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    (line / "cut.png").unlink()
    done = run("everything", line, *options, "--format", "coco", "--format", "overlay", "--output", tmp_path / "out", *tiny)
    assert done.exit_code == 0
    assert "2 x 1 pass of the encoder and 16 prompts" in done.stderr
    assert re.search(r"the first took [\d.]+ s, about \d+ s for the other 1\n", done.stderr)
    sam = build_sam_groupmix(tiny[1])
    content = from_coco(json.loads((tmp_path / "out" / "annotations.json").read_text()), tmp_path / "out")
    for annotated, name in zip(content, ("a", "two/b"), strict=True):
        image = read_image(annotated.path)
        expected = everything(Predictor(sam), image, **settings)
        assert expected
        assert annotated.instances == expected
        overlay = draw_masks(image, annotated.masks())
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"{name}_overlay.png")), np.asarray(overlay))


def test_defaults_are_the_functions():
    """What the command line and Python both have by one name has one default."""
    commands = {name_of(command): command.callback for command in app.registered_commands}
    functions = {
        "adapt": (adapt, RunOptions),
        "batch": (batch,),
        "compare": (pick_images,),
        "demo": (load_named,),
        "distill": (distill, RunOptions),
        "encoders": (train_encoders, Settings),
        "evaluate": (load_model, ReferenceDataset),
        "evaluate-video": (Predictor.from_pretrained,),
        "everything": (everything, Predictor.from_pretrained),
        "export": (export,),  # its checkpoint is "fast" for a web page
        "profile": (measure_costs,),
        "push": (push_to_hub,),
        "segment": (segment, Predictor.from_pretrained),
        "serve": (Limits, Predictor.from_pretrained),
        "stream": (Predictor.from_pretrained,),
    }
    assert {*functions, "info"} == set(commands)
    for name, theirs in functions.items():
        ours = defaults(commands[name])
        if "recipe" in ours:
            ours["recipe"] = load_recipe(ours["recipe"])
        if "preset" in ours:
            ours["resize"] = preset(ours["preset"]).resize
        for function in theirs:
            shared = ours.keys() & defaults(function).keys()
            assert shared, f"{name} and {function.__name__} have nothing in common"
            assert {key: ours[key] for key in shared} == {key: defaults(function)[key] for key in shared}, name
    assert defaults(commands["adapt"])["minutes"] == ADAPT.minutes == ADAPT.decoder.minutes
    assert [defaults(commands["export"])[name] for name in ("min_mean_iou", "min_iou", "pred_iou_thresh")] == list(Thresholds())


def name_of(command):
    """What typer calls a command."""
    return command.callback.__name__.replace("_", "-")


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_push(tiny, monkeypatch, tmp_path):
    """To a server that speaks the Hub's protocol; what arrives can be loaded and has the record."""
    sam = build_sam_groupmix(tiny[1])
    path = save_weights(sam, tmp_path / "mine.safetensors", training={"data": "200 frames"})
    with running_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("groupmix_sam.hub.HfApi", lambda: HfApi(endpoint=hub.url, token="t"))
        done = run("push", path, "org/repo", "--private")
        assert done.stdout.startswith(f"pushed to {hub.url}/org/repo/commit/")
        assert hub.private is True
        assert set(hub.uploads) == {"model.safetensors", "config.json", "README.md"}
        # What is there and public stays so on the Hub, whatever is asked for.
        sent, hub.uploads, hub.private = hub.uploads, {}, False
        with pytest.raises(InvalidInputError, match="org/repo is there and public"):
            run("push", path, "org/repo", "--private")
        assert hub.uploads == {}
        hub.private = None
        run("push", path, "org/repo")
        assert not json.loads(hub.created[2]).keys() & {"private", "visibility"}, "as the organization sets it"
        hub.uploads = sent
    (tmp_path / "model.safetensors").write_bytes(hub.uploads["model.safetensors"])
    again = build_sam_groupmix(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), sam.state_dict().values(), strict=True))
    assert "200 frames" in hub.uploads["README.md"].decode()


def test_help_has_every_command_in_a_panel():
    text = run("--help").stdout
    for panel in ("Use", "Train", "Measure", "Deploy"):
        assert f" {panel} " in text
    for command in app.registered_commands:
        assert f" {name_of(command)} " in text
        assert run(name_of(command), "--help").exit_code == 0
    assert "Exit codes: 0" in text


@pytest.mark.parametrize("name", ["", *(name_of(command) for command in app.registered_commands)])
def test_help_has_every_word_and_examples_that_can_be_run(name, monkeypatch):
    """Rich takes what is in brackets for its own, so that it must not be there."""
    monkeypatch.setenv("COLUMNS", "400")
    text = run(*name.split(), "--help").stdout
    whole = typer.main.get_command(app)
    command = whole.commands[name] if name else whole
    for parameter in command.params:
        assert parameter.help in text
    examples = [line for line in map(str.strip, command.help.splitlines()) if line.startswith("groupmix-sam")]
    assert examples
    for example in examples:
        assert f"{example}\n" in re.sub(" +\n", "\n", text), "on a line of its own"
        _, used, *words = shlex.split(example.partition(" > ")[0])
        assert used == name or not name
        whole.commands[used].make_context(used, words)  # which fails at what it does not know


def test_version_and_wrong_usage():
    assert run("--version").stdout == f"groupmix-sam {groupmix_sam.__version__}\n"
    wrong = CliRunner().invoke(app, ["segment", "a.jpg", "--no-such-option"])
    assert wrong.exit_code == 2


def test_completion(tmp_path):
    """A script that bash can read, and what it asks us for."""
    script = CliRunner().invoke(app, [], prog_name="groupmix-sam", env={"_GROUPMIX_SAM_COMPLETE": "source_bash"}).stdout
    assert "complete " in script
    (tmp_path / "complete.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "complete.sh"], check=True)
    asked = {"_GROUPMIX_SAM_COMPLETE": "complete_bash", "COMP_WORDS": "groupmix-sam ev", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], prog_name="groupmix-sam", env=asked).stdout.split() == [
        "everything",
        "evaluate",
        "evaluate-video",
    ]
