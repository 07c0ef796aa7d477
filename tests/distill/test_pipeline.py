"""The whole way, by the functions and by the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.cli import app
from groupmix_sam.distill import (
    ADAPT,
    DecoderRecipe,
    Grid,
    ImageFile,
    Phase,
    Recipe,
    RunOptions,
    adapt,
    cache_features,
    distill,
    find_images,
    load_recipe,
    load_teacher,
    r2_score,
)
from groupmix_sam.distill.adaptation import format_interval, hold_out_blocks, summary
from groupmix_sam.distill.pipeline import cache_held_out, hold_out, without_copies
from groupmix_sam.errors import InvalidInputError, RunStoppedError
from groupmix_sam.weights import save_weights

from .conftest import PlainTeacher, paint

SIZE = 256
SHORT = Recipe(epochs=0.5, phases=(Phase(1.0, 64, 2),), ridge_finish=False)


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def test_hold_out(photos):
    images = find_images(photos)
    measured, others = hold_out(images)
    assert len(measured) == 1
    assert sorted(map(str, measured + others)) == sorted(map(str, images))
    many = images * 100
    assert [len(part) for part in hold_out(many)] == [24, 576]
    for few, match in ((images[:1], "only one image"), ([], "there is no image: give two or more")):
        for function in (hold_out, hold_out_blocks):
            with pytest.raises(InvalidInputError, match=match):
                function(few)


def test_copies_of_held_out_images_are_not_trained_on(photos, tmp_path):
    """Whatever their names, in tars too; an image that cannot be read stays, to be named where it is used."""
    first, *others = find_images(photos)
    shutil.copy(first.path, tmp_path / "copy.png")
    (tmp_path / "same_size.png").write_bytes(b"x" * first.path.stat().st_size)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(first.path, "in_tar.png")
        tar.add(others[0].path, "other.png")
    found = [*find_images(tmp_path), *others, ImageFile(tmp_path / "gone.png")]
    kept = without_copies(found, [first, ImageFile(tmp_path / "gone.png")])
    left_out = [str(image).removeprefix(f"{tmp_path}/") for image in found if image not in kept]
    assert left_out == ["copy.png", "shard.tar:in_tar.png"]


def test_another_image_is_measured_on_where_the_held_out_one_cannot_be_read(photos, tmp_path):
    """Under 20 images one is held out; its copies, and those of the one in its place, are not trained on."""
    shutil.copy(next(iter(find_images(photos))).path, tmp_path / "copy.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "too.png").write_bytes(b"no image either")
    broken, too = ImageFile(tmp_path / "broken.png"), ImageFile(tmp_path / "too.png")
    training = [too, *find_images(photos), ImageFile(tmp_path / "copy.png")]
    expected = training[2:-1]
    held_out, skipped = cache_held_out([broken], training, PlainTeacher(), tmp_path / "cache", Grid(128))
    assert len(held_out) == 1
    assert skipped == [broken, too]
    assert training == expected
    with pytest.raises(InvalidInputError, match=r"broken\.png cannot be read"):
        cache_held_out([broken], [too], PlainTeacher(), tmp_path / "cache", Grid(128))


@pytest.mark.parametrize(
    ("count", "held_out", "blocks", "gap"),
    [(2, 1, 1, 0), (5, 1, 1, 0), (6, 1, 1, 1), (20, 2, 1, 1), (99, 9, 3, 1), (200, 20, 4, 2), (5000, 24, 4, 5)],
)
def test_frames_are_held_out_in_blocks(count, held_out, blocks, gap):
    """No frame beside one that is held out is trained on, whatever the order in which the frames are found."""
    frames = [ImageFile(Path(f"line/frame_{i}.png")) for i in range(count)]
    measured, training = (
        [int(image.path.stem.split("_")[1]) for image in part] for part in hold_out_blocks(sorted(frames, key=str))
    )
    assert len(measured) == held_out
    assert measured == sorted(measured)
    assert training == sorted(training)
    starts = [i for i in measured if i - 1 not in measured]
    assert len(starts) == blocks
    for i in measured:
        assert all(i + step not in training for step in range(-gap, gap + 1))
    assert len(training) == count - held_out - 2 * gap * blocks
    assert training[0] == 0, "there are training frames on both sides of every block"
    if count > 2:
        assert training[-1] == count - 1


def test_distill(mobile_sam, photos, tmp_path, capsys):
    """Images in, weights out that the builder loads, with the teacher's own decoder and the record in their header."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        paint(folder / f"{i}.png", 160, 120, i)
    (folder / "broken.jpg").write_bytes(b"no image")
    distill(folder, mobile_sam, tmp_path / "run", SHORT, encoder="gmf_sam_test", image_size=SIZE)
    said = capsys.readouterr()
    assert "5 images; what the teacher says of them goes to" in said.out
    assert f"skipped, it cannot be read or is too narrow: {folder / 'broken.jpg'}" in said.err
    weights = tmp_path / "run" / "weights"
    assert f"wrote {weights}" in said.out
    sam = build_sam_groupmix(weights, encoder="gmf_sam_test", image_size=SIZE)
    teacher = torch.load(mobile_sam, weights_only=True)
    assert torch.equal(sam.mask_decoder.iou_token.weight, teacher["mask_decoder.iou_token.weight"])
    trained = load_file(tmp_path / "run" / "encoder.safetensors")
    assert torch.equal(sam.image_encoder.neck.proj.weight, trained["neck.proj.weight"])
    with safe_open(weights / "model.safetensors", framework="pt") as f:
        record = json.loads(f.metadata()["training"])
    assert record["recipe"]["phases"] == SHORT.to_dict()["phases"]
    assert record["skipped"] == [str(folder / "broken.jpg")]
    assert (weights / "README.md").is_file()
    assert (tmp_path / "run" / "loss.png").is_file()


def test_a_run_that_was_stopped_is_resumed_from_its_images(mobile_sam, photos, tmp_path, monkeypatch):
    """Nothing but the seed says what the untrained encoder was, so the second call must come to the same one."""
    kwargs = {"encoder": "gmf_sam_test", "image_size": SIZE, "cache": tmp_path / "cache"}
    distill(photos, mobile_sam, tmp_path / "whole", SHORT, **kwargs)
    update = ModelEmaV3.update

    def interrupt(average, student, step):
        update(average, student, step)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ModelEmaV3, "update", interrupt)
    with pytest.raises(RunStoppedError, match="after step 5"):
        distill(photos, mobile_sam, tmp_path / "run", SHORT, **kwargs)
    monkeypatch.undo()
    torch.rand(3)
    distill(photos, mobile_sam, tmp_path / "run", SHORT, RunOptions(resume=True), **kwargs)
    whole, resumed = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


def test_command_from_the_start_of_a_timm_backbone(mobile_sam, photos, tmp_path):
    """`groupmix-sam distill`, without a cache, of a backbone that only timm knows."""
    recipe = tmp_path / "short.yaml"
    recipe.write_text("phases: [{crop: 64, batch_size: 2}]\nridge_finish: false\n")
    out = tmp_path / "run"
    done = run(
        "distill", photos / "below", "--teacher", mobile_sam, "--output", out, "--epochs", "0.01", "--recipe", recipe,
        "--encoder", "timm/resnet10t", "--image-size", SIZE, "--no-cache",
    )  # fmt: skip
    assert done.exit_code == 0
    assert "3 images; no cache" in done.stdout
    sam = build_sam_groupmix(out / "weights", encoder="timm/resnet10t")
    trained = load_file(out / "encoder.safetensors")
    assert torch.equal(sam.image_encoder.neck.proj.weight, trained["neck.proj.weight"])
    assert len(list((out / "cache").glob("maps-*"))) == 1, "but for the image that is held out"


def weights_of(module, prefix=""):
    return {name: value for name, value in module.state_dict().items() if name.startswith(prefix)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_decoder_learns_after_the_encoder(mobile_sam, photos, tmp_path, capsys):
    """Both halves are what their stages wrote; the prompt encoder is the teacher's."""
    recipe = replace(SHORT, decoder=DecoderRecipe(epochs=1, points=1, instances=1, batch_size=3))
    out = tmp_path / "run"
    record = distill(photos, mobile_sam, out, recipe, encoder="gmf_sam_test", image_size=SIZE)
    sam = build_sam_groupmix(out / "weights")
    teacher = torch.load(mobile_sam, weights_only=True)
    assert same(sam.image_encoder.state_dict(), load_file(out / "encoder.safetensors"))
    assert same(sam.mask_decoder.state_dict(), load_file(out / "decoder" / "decoder.safetensors"))
    assert same(weights_of(sam, "prompt_encoder."), {k: v for k, v in teacher.items() if k.startswith("prompt_encoder.")})
    assert not torch.equal(sam.mask_decoder.mask_tokens.weight, teacher["mask_decoder.mask_tokens.weight"])
    with safe_open(out / "weights" / "model.safetensors", framework="pt") as f:
        assert json.loads(f.metadata()["training"])["decoder"] == record["decoder"]
    assert record["decoder"]["steps"] == 2, "five images in threes"
    means = [record["decoder"][time]["box_iou"] for time in ("before", "after")]
    assert "IoU with the teacher by box: {:.3f} before, {:.3f} after".format(*means) in capsys.readouterr().out
    assert load_recipe(str(out / "recipe.yaml")) == recipe
    assert (out / "decoder" / "loss.png").is_file()


def test_command_for_the_decoder_alone(mobile_sam, photos, tmp_path):
    """`--minutes 0` leaves the encoder as it is; a stage more can follow a run that has ended."""
    start = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=SIZE)
    init, out = save_weights(start, tmp_path / "start.safetensors"), tmp_path / "run"
    done = run(
        "distill", photos, "--teacher", mobile_sam, "--output", out, "--init-checkpoint", init, "--minutes", "0",
        "--decoder-minutes", "0.0001",
    )  # fmt: skip
    assert done.exit_code == 0
    sam = build_sam_groupmix(out / "weights")
    assert same(sam.image_encoder.state_dict(), start.image_encoder.state_dict())
    assert same(sam.mask_decoder.state_dict(), load_file(out / "decoder" / "decoder.safetensors"))
    assert not same(sam.mask_decoder.state_dict(), start.mask_decoder.state_dict())
    assert not (out / "log.csv").exists()
    assert [path.name for path in (out / "cache").glob("student-*")] != []


def test_command_for_both_halves(mobile_sam, photos, tmp_path):
    """The encoder learns with the decoder, and R2 is that of what is written."""
    start = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=SIZE)
    init, out = save_weights(start, tmp_path / "start.safetensors"), tmp_path / "run"
    run(
        "distill", photos, "--teacher", mobile_sam, "--output", out, "--init-checkpoint", init, "--minutes", "0",
        "--decoder-minutes", "0.0001", "--encoder-too",
    )  # fmt: skip
    sam = build_sam_groupmix(out / "weights")
    for name, part in (("encoder", sam.image_encoder), ("decoder", sam.mask_decoder)):
        assert same(part.state_dict(), load_file(out / "decoder" / f"{name}.safetensors"))
    assert not same(sam.image_encoder.state_dict(), start.image_encoder.state_dict())
    assert list((out / "cache").glob("student-*")) == [], "no features are kept of an encoder that changes"
    with safe_open(out / "weights" / "model.safetensors", framework="pt") as f:
        training = json.loads(f.metadata()["training"])
    measured, _ = hold_out(find_images(photos))
    held_out, _ = cache_features(measured, load_teacher(mobile_sam)[0], out / "cache", Grid(SIZE))
    with torch.no_grad():
        before, after = (r2_score(model.image_encoder.eval(), held_out, Grid(SIZE)) for model in (start, sam))
    assert training["r2"] == pytest.approx(after, abs=1e-5)
    assert training["r2"] != pytest.approx(before, abs=1e-5)


def test_epochs_take_the_place_of_a_recipes_minutes(monkeypatch, photos, mobile_sam, tmp_path):
    """As in the recipe.yaml of a run by --minutes."""
    asked = []
    monkeypatch.setattr("groupmix_sam.distill.distill", lambda *args, **_: asked.append(args[3]))
    (tmp_path / "recipe.yaml").write_text("minutes: 60\nepochs: 6\n")
    for more in ([], ["--epochs", "3"], ["--minutes", "5"]):
        run("distill", photos, "--teacher", mobile_sam, "--recipe", tmp_path / "recipe.yaml", *more)
    assert [(recipe.minutes, recipe.epochs) for recipe in asked] == [(60, 6), (None, 3), (5, 6)]


def test_command_in_two_processes(photos, mobile_sam, tmp_path):
    """As the docs start it, of a recipe whose batches two cannot share: they are raised, and that is said.

    What either process cannot read is named once.
    """
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "z.png").write_bytes(b"no image")
    (tmp_path / "short.yaml").write_text(
        "phases: [{crop: 64, batch_size: 3}, {crop: 0, batch_size: 1}]\nridge_finish: false\nepochs: 1\n"
    )
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "groupmix_sam",
        "distill", folder, "--teacher", mobile_sam, "--output", tmp_path / "run", "--recipe", tmp_path / "short.yaml",
        "--encoder", "gmf_sam_test", "--image-size", str(SIZE), "--no-cache",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("batches of 3, 1 are raised to 4, 2, which 2 parts share evenly") == 1
    assert done.stderr.count(f"skipped, it cannot be read or is too narrow: {folder / 'z.png'}") == 1
    assert (tmp_path / "run" / "skipped.txt").read_text().splitlines().count(str(folder / "z.png")) >= 1
    found = build_sam_groupmix(tmp_path / "run" / "weights").image_encoder
    trained = load_file(tmp_path / "run" / "encoder.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in found.state_dict().items())


def test_command_refuses_before_the_teacher_is_asked(photos, mobile_sam, tmp_path):
    for args, match in (
        (["--minutes", "1", "--epochs", "1"], "give one"),
        (["--minutes", "0"], "minutes is 0"),
        (["--decoder-minutes", "0"], r"decoder\.minutes is 0"),
        (["--encoder-too"], "give --decoder-minutes"),
        (["--decoder-minutes", "1", "--no-cache"], "the decoder is trained on cached features"),
        (["--recipe", "papers"], "did you mean paper"),
        (["--recipe", "continue"], "give --init-checkpoint"),
        (["--precision", "fp8"], "precision is 'fp8'"),
        (["--grad-checkpointing", "--encoder", "timm/hrnet_w18_small"], "timm/hrnet_w18_small has no gradient checkpointing"),
        (["--encoder", "timm/vit_tiny_patch16_224"], "takes no image of 256 x 256 .*choose one that takes any size"),
    ):
        with pytest.raises((InvalidInputError, KeyError), match=match):
            run("distill", photos, "--teacher", mobile_sam, "--output", tmp_path / "run", *args)
    assert not (tmp_path / "run" / "cache").exists()


def test_a_teacher_of_one_size_is_asked_about_no_other(photos, tmp_path, monkeypatch):
    teacher = PlainTeacher()
    teacher.image_size = 1024
    monkeypatch.setattr("groupmix_sam.distill.pipeline.load_teacher", lambda *_: (teacher, {}))
    with pytest.raises(InvalidInputError, match=f"the image size is {SIZE}, for which .* at {SIZE}, and it takes 1024 alone"):
        distill(photos, "any", tmp_path / "run", encoder="gmf_sam_test", image_size=SIZE)
    assert teacher.calls == 0


def test_adapt(mobile_sam, tmp_path, capsys):
    """From weights that are trained already, with some of a general set; with the IoU before and after."""
    line, replay_images = tmp_path / "line", tmp_path / "replay_images"
    for folder, seed in ((line, 0), (replay_images, 10)):
        folder.mkdir()
        for i in range(7):
            paint(folder / f"{i}.png", 160, 120, seed + i)
    init_checkpoint = save_weights(
        build_sam_groupmix(None, encoder="gmf_sam_test", image_size=SIZE), tmp_path / "start.safetensors"
    )
    recipe = Recipe(epochs=2, phases=(Phase(0.5, 64, 2), Phase(0.5, 0, 1)), ridge_finish=False)
    out = tmp_path / "run"
    record = adapt(
        line,
        out,
        recipe,
        teacher=mobile_sam,
        checkpoint=init_checkpoint,
        encoder="gmf_sam_test",
        replay_images=replay_images,
        image_size=SIZE,
    )
    assert record["images"] == 4 + 1, "one is held out with the two beside it left out, and a quarter is of the general set"
    assert record["recipe"]["ridge_start"] is False
    found = json.loads((out / "teacher_iou.json").read_text())
    said = capsys.readouterr().out
    assert "frames to train on: 4; held out in blocks: 1; left out beside them: 2" in said
    assert f"6 images; what the teacher says of them goes to {out / 'cache'}" in said
    for name in ("before", "after"):
        ious = np.array(found[f"ious_{name}"])
        assert ious.shape == (1, 16)
        assert found[name][0] == pytest.approx(ious.mean())
        assert f"IoU with the teacher {name}: {ious.mean():.3f}\n" in said
    difference = np.array(found["ious_after"]).mean() - np.array(found["ious_before"]).mean()
    assert found["difference"] == [pytest.approx(difference)]
    assert f"difference, frame by frame: {difference:+.3f}\n" in said
    assert "frames held out: 1, too few for an interval" in said
    adapted, started = (build_sam_groupmix(path) for path in (out / "weights", init_checkpoint))
    assert same(adapted.mask_decoder.state_dict(), started.mask_decoder.state_dict()), "it may have been trained"


def test_adapting_to_nothing_new_keeps_agreement(mobile_sam, tmp_path):
    """A student that is the teacher agrees with it, but for the cache's half precision: an untrained decoder magnifies it."""
    for i in range(2):
        paint(tmp_path / f"{i}.png", 160, 120, i)
    recipe = Recipe(epochs=1, phases=(Phase(1.0, 0, 1),), lr=1e-12)
    mobile = {"checkpoint": mobile_sam, "encoder": "sam_tiny_vit_5m"}
    record = adapt(tmp_path, tmp_path / "run", recipe, teacher=mobile_sam, **mobile, image_size=SIZE)
    before, after = (record["teacher_iou"][name][0] for name in ("before", "after"))
    assert before > 0.8
    assert after == pytest.approx(before, abs=0.05)


def test_the_recipe_of_adapt():
    """As the command's help says: 20 minutes, no start, the neck is left as it is, and frames are seen as at inference."""
    assert (ADAPT.minutes, ADAPT.ridge_start, ADAPT.ridge_finish, ADAPT.hint_weight) == (20.0, False, False, 0.0)
    assert [phase.crop for phase in ADAPT.phases] == [0]


def test_summary_by_hand():
    """Of eight means, four are 0.3 and four 0.8: of eight drawn, one to seven are 0.8 in 95 %. Of three it is Student's."""
    ious = np.array([[0.2, 0.4], [0.8, 0.8]] * 4)
    mean, low, high = summary(ious)
    assert mean == pytest.approx(0.55)
    assert (low, high) == (pytest.approx(0.3 + 0.5 / 8), pytest.approx(0.8 - 0.5 / 8))
    half = 4.303 * np.std([0.3, 0.8, 0.3], ddof=1) / np.sqrt(3)
    assert summary(ious[:3]) == pytest.approx([1.4 / 3, 1.4 / 3 - half, 1.4 / 3 + half])
    assert summary(ious[:2]) == [pytest.approx(0.55)]
    assert summary([[0.2, 0.4, 0.3], [0.8]]) == [pytest.approx(0.55)], "images count alike, whatever they show"
    better = ious + np.array([[0.01], [0.02]] * 4)
    mean, low, high = summary(better - ious)
    assert mean == pytest.approx(0.015)
    assert 0.01 < low < 0.015 < high < 0.02, "frames that differ do not hide a change that all have"


@pytest.mark.parametrize(("figure", "text"), [([0.0349, 0.01, -0.06], "+0.035 (+0.010 to -0.060)"), ([-0.2], "-0.200")])
def test_figures_are_told(figure, text):
    assert format_interval(figure, "+") == text
