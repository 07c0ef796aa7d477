import io
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.utils import ModelEmaV3
from tqdm import tqdm

from groupmix_sam import build_sam_groupmix
from groupmix_sam.distill import (
    FrozenDecoder,
    Grid,
    Phase,
    Recipe,
    RunOptions,
    cache_features,
    find_images,
    load_recipe,
    loop,
    r2_score,
    train_student,
)
from groupmix_sam.distill import trainer as training
from groupmix_sam.distill.checkpoint import Progress, load_checkpoint, save_checkpoint
from groupmix_sam.distill.data import Samples, as_input, whole_images
from groupmix_sam.distill.student import Student
from groupmix_sam.errors import InvalidInputError, RunStoppedError, SaveError, WeightsError
from groupmix_sam.sam import create_encoder

from .conftest import GRID, SIZE, PlainTeacher, rows_of, step_of, tiny_student

TINY = Recipe(epochs=4, phases=(Phase(0.8, 64, 4), Phase(0.2, 0, 1)))


def run(cached, folder, recipe=TINY, options=RunOptions(), **kwargs):  # noqa: B008
    return train_student(tiny_student(), PlainTeacher(), cached[2:], cached[:2], folder, recipe, options, **kwargs)


@pytest.fixture(scope="module")
def tiny_run(cached, tmp_path_factory):
    """The folder and the record of a run that several tests look at, each at something else."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    _, record = run(cached, folder, TINY, RunOptions(tensorboard=True))
    return folder, record


def test_r2_by_hand(cached):
    """The teacher's own maps score 1, its channels' means score 0."""
    maps = [p["features"][p["valid"]] for p in whole_images(cached, GRID)]
    mean = torch.cat(maps).double().mean(0).float()
    perfect = lambda x: PlainTeacher()(x)["features"]  # noqa: E731
    flat = lambda x: mean[None, :, None, None].expand(1, 256, SIZE // 16, SIZE // 16)  # noqa: E731
    assert r2_score(perfect, cached, GRID) == pytest.approx(1.0, abs=1e-4)
    assert r2_score(flat, cached, GRID) == pytest.approx(0.0, abs=1e-4)


def test_r2_needs_no_fp64_on_the_device(cached):
    """As MPS has none: there is one process alone, and nothing to be summed up on the device."""
    encoder = tiny_student().eval()
    alone = SimpleNamespace(process_index=0, num_processes=1, device="cpu")
    assert r2_score(encoder, cached, GRID, alone) == r2_score(encoder, cached, GRID)


def test_learning_rate_by_hand():
    recipe = Recipe(lr=1.0, warmup=0.1)
    assert training.learning_rate(recipe, 0.0) == pytest.approx(0.01)
    assert training.learning_rate(recipe, 0.049) == pytest.approx(0.5)
    assert training.learning_rate(recipe, 0.5) == pytest.approx(0.5)
    assert training.learning_rate(recipe, 1.0) == pytest.approx(0.0)
    assert training.learning_rate(Recipe(lr=1.0, warmup=0.0, schedule="constant"), 0.9) == 1.0


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_average(cached, tmp_path, monkeypatch, decay):
    """What a run returns, by hand: a decay of 0, 1/10, 2/11, then the recipe's. Of BatchNorm's counts the last ones stand."""
    seen = []
    update = ModelEmaV3.update

    def note(average, student, step):
        seen.append({name: value.clone() for name, value in student.encoder.state_dict().items()})
        update(average, student, step)

    monkeypatch.setattr(ModelEmaV3, "update", note)
    encoder, _ = run(
        cached, tmp_path / "run", Recipe(epochs=1.25, phases=(Phase(1.0, 64, 4),), ema_decay=decay, ridge_finish=False)
    )
    assert len(seen) == 5
    average = encoder.state_dict()
    for name, expected in seen[0].items():
        for step, values in enumerate(seen[1:], 2):
            rate = min(decay, (step - 1) / (8 + step)) if expected.is_floating_point() else 0
            expected = rate * expected + (1 - rate) * values[name]
        torch.testing.assert_close(average[name], expected.to(average[name].dtype))


@pytest.mark.parametrize(
    ("name", "pattern", "count"),
    [
        ("gmf_sam_test", "nothing", 0),
        ("sam_tiny_vit_5m", "attention_biases", 10),
        ("sam_resnet18", "pos_embed", 1),
        ("timm/test_vit", r"pos_embed|cls_token", 2),
    ],
)
def test_what_decays(name, pattern, count):
    """Matrices and kernels; not biases, norms, and what the encoder's authors leave out."""
    student = Student(create_encoder(name, 224 if "vit" in name else 1024), {"hint_out": 8})
    optimizer = training.make_optimizer(student, Recipe(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(student.named_parameters())
    left_out = [key for key in named if re.search(pattern, key)]
    assert len(left_out) == count
    for key, parameter in named.items():
        assert decay[id(parameter)] == (0.0 if parameter.ndim <= 1 or key in left_out else 0.1), key


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_losses_by_hand(cached, loss):
    """Features over the teacher's variance, hints fading, and padding that does not count whatever the student says of it."""
    recipe = Recipe(loss=loss, hint_weight=0.5)
    batch = next(whole_images(cached, GRID))
    rows = int(batch["valid"][0, :, 0].sum())
    assert rows < SIZE // 16
    outputs = {name: torch.randn_like(batch[name], dtype=torch.float32) for name in ("features", "hint_in", "hint_out")}
    objective = training.Objective(recipe, {"features": 2.0, "hint_in": 3.0, "hint_out": 4.0}, None)
    total, terms = objective(outputs, batch, Phase(), 0.25, 0)
    errors = {name: (out[:, :rows] - batch[name][:, :rows]).flatten() for name, out in outputs.items()}
    features = errors["features"].square().mean() / 2
    if loss == "huber":
        small = errors["features"].abs() < 1
        features = torch.where(small, errors["features"].square() / 2, errors["features"].abs() - 0.5).mean()
    torch.testing.assert_close(terms["features"], features)
    hints = errors["hint_in"].square().mean() / 3 + errors["hint_out"].square().mean() / 4
    torch.testing.assert_close(total, features + 0.5 * 0.25 * hints)


def test_plan_by_hand(tiny_run):
    """Four passes over four images, in units of 128 x 128 pixels: 80 % by steps of 4 x 1/4, 20 % by steps of 1."""
    folder, record = tiny_run
    assert record["steps"] == [round(4 * 4 * 0.8 / 1), round(4 * 4 * 0.2)]
    last = rows_of(folder)[-1]
    assert (int(last["step"]), float(last["images"])) == (16, 16.0)


def test_distilling_learns_the_teacher(cached, tmp_path):
    """The student gets near to images that it was not trained on, and everything that is promised is written."""
    folder = tmp_path / "run"
    encoder, record = run(cached, folder, Recipe(epochs=24, phases=(Phase(0.8, 64, 4), Phase(0.2, 0, 1))))
    score = r2_score(encoder, cached[:2], GRID)
    assert score > 0.5
    assert record["r2"] == pytest.approx(score, abs=1e-5)
    saved = load_file(folder / "encoder.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in encoder.state_dict().items())
    rows = rows_of(folder)
    assert float(rows[-1]["r2"]) == pytest.approx(score, abs=1e-4)
    checks = [row for row in rows[:-1] if row["r2"]]
    assert len(checks) == 24, "one an epoch"
    assert float(rows[0]["features"]) > 2 * float(rows[-2]["features"])
    assert len(list((folder / "features").glob("*.png"))) == 24
    with Image.open(folder / "features.png") as image:
        assert image.height > 24 * 100
    assert yaml.safe_load((folder / "run.yaml").read_text())["recipe"]["epochs"] == 24


def test_half_the_pixels_teach_the_same(photos, tmp_path):
    """A student of stride 8 learns the teacher at twice its size; crops, R2 and the drawn features are in its own cells."""
    grid = Grid(SIZE // 2, 8)
    cached, _ = cache_features(find_images(photos), PlainTeacher(), tmp_path / "c", grid)
    torch.manual_seed(0)
    student = timm.create_model("gmf_sam_test", img_size=SIZE // 2, embed_stride=8)
    recipe = Recipe(epochs=24, phases=(Phase(0.8, 32, 4), Phase(0.2, 0, 1)))
    encoder, record = train_student(student, PlainTeacher(), cached[2:], cached[:2], tmp_path / "run", recipe)
    assert record["image_size"] == SIZE // 2
    errors, targets = [], []
    for image in cached[:2]:
        maps, (rows, columns) = image.read(), image.grid()
        with torch.no_grad():
            found = encoder(as_input(maps["image"], SIZE // 2))[0].permute(1, 2, 0)[:rows, :columns]
        assert (rows, columns) == tuple(maps["features"].shape[:2])
        errors.append((found - maps["features"]).square().sum().item())
        targets.append(maps["features"].float().flatten(0, 1))
    total = (torch.cat(targets) - torch.cat(targets).mean(0)).square().sum().item()
    assert record["r2"] == pytest.approx(1 - sum(errors) / total, abs=1e-3)
    assert record["r2"] > 0.2, "and 0 for one that knows the channels' means"


def test_a_run_keeps_its_recipe(tiny_run):
    """The file is what `--recipe` takes, and gives the same recipe."""
    folder, _ = tiny_run
    assert load_recipe(str(folder / "recipe.yaml")) == TINY


def test_tensorboard_shows_what_the_log_says(tiny_run):
    folder, _ = tiny_run
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = rows_of(folder)
    for name in ("features", "hint_in", "hint_out", "lr", "r2", "images"):
        logged = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        shown = {event.step: event.value for event in board.Scalars(name)}
        assert logged, name
        assert shown == pytest.approx(logged, rel=1e-4), name


def test_bf16_is_near_fp32(cached, tmp_path):
    """Its losses are other ones, but near; the weights stay in single precision."""
    recipe = Recipe(epochs=2, phases=(Phase(1.0, 64, 4),))
    encoders, losses = [], []
    for precision in ("fp32", "bf16"):
        encoder, _ = run(cached, tmp_path / precision, recipe, RunOptions(precision=precision))
        encoders.append(encoder)
        losses.append([float(row["features"]) for row in rows_of(tmp_path / precision) if row["features"]])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert {p.dtype for encoder in encoders for p in encoder.parameters()} == {torch.float32}


def test_progress_shows_loss_r2_images_a_second_and_what_is_left(cached, tmp_path, monkeypatch):
    """As they stand in the log; the last R2 stays beside later losses."""
    shown = io.StringIO()
    monkeypatch.setattr(loop, "tqdm", lambda **options: tqdm(**options | {"disable": False, "file": shown}))
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    run(cached, tmp_path / "run", Recipe(epochs=2, phases=(Phase(1.0, 64, 1),)))
    rows = rows_of(tmp_path / "run")[:-1]
    loss, score = (float([row[name] for row in rows if row[name]][-1]) for name in ("features", "r2"))
    last = shown.getvalue().split("\r")[-1]
    assert re.search(rf"8/8 \[[\d:]+<[\d:]+, +[\d.]+image/s, loss={loss:.3f}, R2={score:.3f}\]", last), last
    assert not rows[-2]["r2"], "or it would have been shown anew"


def test_minutes_set_the_epochs(cached, tmp_path):
    """On a clock by which every step takes three seconds, a minute has 20 steps."""

    class Clock:
        now = 0.0

        def __call__(self):
            self.now += 3.0
            return self.now

    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", SimpleNamespace(monotonic=clock))
        _, record = run(cached, tmp_path / "run", Recipe(minutes=1.0, phases=(Phase(1.0, 64, 4),)))
    assert record["steps"] == [20]


def test_without_a_cache_the_teacher_is_asked(photos, cached, tmp_path):
    """The same steps, up to the cache's half precision."""
    images = {p.path.name: p for p in find_images(photos)}
    curves = []
    for source, name in ((list(images.values())[:3], "asked"), (None, "cached")):
        if source is None:
            by_image = [cache_features([p], PlainTeacher(), tmp_path / "c", GRID)[0][0] for p in list(images.values())[:3]]
            source = by_image
        recipe = Recipe(epochs=2, phases=(Phase(1.0, 64, 2),), ridge_start=False, ridge_finish=False)
        train_student(tiny_student(), PlainTeacher(), source, cached[:1], tmp_path / name, recipe)
        curves.append([float(r["features"]) for r in rows_of(tmp_path / name) if r["features"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-2)


def test_through_the_mask_decoder(cached, tmp_path):
    """A phase on masks brings the student's masks nearer to the teacher's, and leaves the decoder as it was."""
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=SIZE)
    before = {k: v.clone() for k, v in sam.mask_decoder.state_dict().items()}
    recipe = Recipe(epochs=12, phases=(Phase(0.2, 64, 4), Phase(0.8, 0, 1, "masks")), lr=1e-3)
    run(cached, tmp_path / "run", recipe, decoder=FrozenDecoder(sam))
    losses = [float(row["masks"]) for row in rows_of(tmp_path / "run") if row["masks"]]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(v, sam.mask_decoder.state_dict()[k]) for k, v in before.items())
    with pytest.raises(InvalidInputError, match="pass the mask decoder"):
        run(cached, tmp_path / "other", recipe)


def test_a_batch_that_cannot_be_shared_out(cached, tmp_path):
    with pytest.raises(InvalidInputError, match="a batch in 3 parts"):
        run(cached, tmp_path / "run", options=RunOptions(accumulate=3))


def test_another_run_is_not_resumed(cached, tmp_path):
    folder = tmp_path / "run"
    run(cached, folder)
    with pytest.raises(InvalidInputError, match="has a run in it: go on with --resume"):
        run(cached, folder)
    other = Recipe(epochs=5, phases=TINY.phases)
    with pytest.raises(InvalidInputError, match=r"(?s)cannot be resumed:.*recipe\.epochs: 4 there, 5 asked for"):
        run(cached, folder, other, RunOptions(resume=True))
    with pytest.raises(InvalidInputError, match=r"images: 4 there, 3 asked for"):
        train_student(tiny_student(), PlainTeacher(), cached[3:], cached[:2], folder, TINY, RunOptions(resume=True))
    before = (folder / "encoder.safetensors").read_bytes()
    log = (folder / "log.csv").read_text()
    run(cached, folder, options=RunOptions(resume=True))  # all done: nothing is trained any more
    assert (folder / "log.csv").read_text() == log
    assert before == (folder / "encoder.safetensors").read_bytes()
    (folder / "run.yaml").write_text("recipe: 3")
    with pytest.raises(InvalidInputError, match="no record of a run"):
        run(cached, folder, options=RunOptions(resume=True))


def test_a_run_that_is_killed_before_its_first_checkpoint_begins_anew(cached, tmp_path):
    """It has its plan and no more: the starts are made once more, and all comes out the same."""
    recipe = Recipe(epochs=1, phases=(Phase(1.0, 64, 4),), teacher_blocks=False)
    expected, _ = run(cached, tmp_path / "whole", recipe)
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "whole" / "run.yaml", tmp_path / "killed")
    found, _ = run(cached, tmp_path / "killed", recipe, RunOptions(resume=True))
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in expected.state_dict().items())


def test_stopping_says_how_to_go_on(cached, tmp_path, monkeypatch):
    update, before = ModelEmaV3.update, signal.getsignal(signal.SIGINT)

    def interrupt(average, student, step):
        update(average, student, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ModelEmaV3, "update", interrupt)
    with pytest.raises(RunStoppedError, match=r"stopped after step 3 of 16: go on with --resume"):
        run(cached, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    assert step_of(tmp_path / "run") == 3


def test_a_full_disk_loses_no_checkpoint(cached, tmp_path, monkeypatch):
    student = Student(tiny_student(), {})
    optimizer = training.make_optimizer(student, TINY)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, student, student, optimizer, Progress(3, 1.5))
    before = path.read_bytes()

    def full(_tensors, part, _metadata):
        Path(part).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groupmix_sam.distill.checkpoint.save_file", full)
    with pytest.raises(SaveError, match=r"No space left on device.*nothing was lost"):
        save_checkpoint(path, student, student, optimizer, Progress(4, 2.0))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load_checkpoint(path, student, student, optimizer) == Progress(3, 1.5)
    path.write_bytes(before[:-5])
    with pytest.raises(WeightsError, match="no whole checkpoint"):
        load_checkpoint(path, student, student, optimizer)


def test_checkpointing_activations_changes_no_loss(cached, tmp_path):
    """While BatchNorm takes its statistics from the batch: the running ones see each batch twice."""
    curves = []
    for name, options in (("plain", RunOptions()), ("checkpointed", RunOptions(grad_checkpointing=True))):
        run(cached, tmp_path / name, Recipe(epochs=4, phases=(Phase(1.0, 64, 4),)), options)
        curves.append([float(r["features"]) for r in rows_of(tmp_path / name) if r["features"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize(("phase", "moved"), [(Phase(1.0, 0, 1), False), (Phase(1.0, 64, 2), True)])
def test_a_part_of_one_image_leaves_batch_norm_alone(cached, tmp_path, phase, moved):
    encoder, _ = run(cached, tmp_path / "run", Recipe(epochs=1, phases=(phase,), ridge_start=False, ridge_finish=False))
    means = [m.running_mean for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(means) > 3
    assert all(bool(mean.any()) == moved for mean in means)  # of weights that are new they are 0


def test_each_mean_of_the_log_is_over_the_parts_that_have_it():
    losses = {"features": [torch.tensor(x) for x in (1.0, 2.0, 6.0)], "masks": [torch.tensor(5.0)]}
    assert loop.mean_losses(losses, Accelerator(cpu=True)) == {"features": 3.0, "masks": 5.0}


@pytest.mark.parametrize("kwargs", [{"accumulate": 0}, {"precision": "fp8"}, {"save_minutes": 0}])
def test_bad_options(kwargs):
    with pytest.raises(InvalidInputError, match=next(iter(kwargs))):
        RunOptions(**kwargs)


def test_resized_crops_cannot_come_from_the_cache(cached, tmp_path):
    recipe = Recipe(augmentation="resized_crop", phases=(Phase(1.0, 0, 1),))
    with pytest.raises(InvalidInputError, match="cannot come from the cache"):
        run(cached, tmp_path / "run", recipe)
    with pytest.raises(InvalidInputError, match="no image to train on"):
        train_student(tiny_student(), PlainTeacher(), [], cached, tmp_path / "run", TINY)
    with pytest.raises(InvalidInputError, match="no image is held out"):
        train_student(tiny_student(), PlainTeacher(), cached, [], tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def test_samples_of_a_run_need_no_torch_seed(cached):
    """Another seed of torch's, as another process has, gives the same samples."""
    samples = Samples(cached, TINY, 0, GRID)
    torch.manual_seed(1)
    first = samples[3]["input"]
    torch.manual_seed(2)
    assert torch.equal(first, samples[3]["input"])
