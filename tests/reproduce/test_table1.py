import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from groupmix_sam.cli import app
from groupmix_sam.errors import InvalidInputError, SaveError, UnknownNameError
from groupmix_sam.reproduce import table1 as encoders
from groupmix_sam.reproduce.table1 import PAPER, Epoch, Settings, build_encoder, encoder_table, read_log, train_encoders

FAST = Settings(epochs=2, image_size=64, batch_size=8)
SMALL = ["test_resnet", "test_vit"]  # timm's own, tiny


@pytest.fixture
def data(tmp_path):
    """Eight images a class: a red disc, a blue square."""
    rng = np.random.default_rng(0)
    for name in ("disc", "square"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            image = Image.fromarray(rng.integers(0, 80, (48, 64, 3), dtype=np.uint8))
            draw, (x, y) = ImageDraw.Draw(image), rng.integers(5, 25, 2)
            if name == "disc":
                draw.ellipse((x, y, x + 20, y + 20), fill=(230, 40, 40))
            else:
                draw.rectangle((x, y, x + 20, y + 20), fill=(40, 40, 230))
            image.save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


@pytest.mark.parametrize("size", [64, 224])
def test_the_twelve_encoders_take_images(size):
    for name in PAPER:
        model = build_encoder(name, size, 3).eval()
        with torch.inference_mode():
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 3), name
        assert 2e6 < sum(p.numel() for p in model.parameters()) < 9e6, name


def test_discs_are_told_from_squares(data, tmp_path):
    log = train_encoders(["test_vit"], data, tmp_path / "out", Settings(epochs=8, image_size=64, batch_size=4, lr=2e-3), 0)
    assert [epoch.epoch for epoch in log] == list(range(1, 9))
    assert log[-1].val_accuracy == 1
    assert log[-1].train_loss < log[0].train_loss


def test_log_is_what_the_model_does(data, tmp_path, monkeypatch):
    """Losses and accuracies against a calculation by hand of a model that does not learn."""
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    monkeypatch.setattr(encoders, "build_encoder", lambda *_: model)
    (epoch,) = train_encoders(["x"], data, tmp_path / "out", Settings(epochs=1, image_size=64, batch_size=5, lr=0.0), 0)
    _, val, classes = encoders._read_folder(data, FAST)
    assert classes == ["disc", "square"]
    assert len(val) == 4
    logits = torch.cat([model(image[None]) for image, _ in val]).detach().double().numpy()
    targets = np.array([target for _, target in val])
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert epoch.val_loss == pytest.approx(-np.log(odds[np.arange(4), targets]).mean(), rel=1e-5)
    assert epoch.val_accuracy == (logits.argmax(1) == targets).mean()


def test_resumes_encoder_by_encoder(data, tmp_path, monkeypatch):
    whole = train_encoders(SMALL, data, tmp_path / "whole", FAST, 0)

    def figures(log):
        return [(e.encoder, e.epoch, e.train_loss, e.train_accuracy, e.val_loss, e.val_accuracy) for e in log]

    real = encoders._Mean.values
    calls = []

    def killed(self):
        calls.append(self)
        if len(calls) == 7:  # in the second epoch of the second encoder
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(encoders._Mean, "values", killed)
    with pytest.raises(KeyboardInterrupt):
        train_encoders(SMALL, data, tmp_path / "out", FAST, 0)
    assert figures(read_log(tmp_path / "out")) == figures(whole)[:3]
    monkeypatch.setattr(encoders._Mean, "values", real)
    built = []
    build = encoders.build_encoder
    monkeypatch.setattr(encoders, "build_encoder", lambda name, *args: built.append(name) or build(name, *args))
    log = train_encoders(SMALL, data, tmp_path / "out", FAST, 0)
    assert figures(log) == figures(whole) == figures(read_log(tmp_path / "out"))
    assert built[len(SMALL) :] == [SMALL[1]], "all are checked, the second alone is trained"


def test_all_see_the_same_images(data):
    """Augmented by seed, epoch and number alone."""
    torch.manual_seed(1)
    train, _, _ = encoders._read_folder(data, FAST)
    first = [train[i][0] for i in range(len(train))]
    torch.manual_seed(2)
    again, _, _ = encoders._read_folder(data, FAST)
    assert all(torch.equal(again[i][0], first[i]) for i in reversed(range(len(train))))
    train.epoch = 1
    assert not torch.equal(train[0][0], first[0])


def test_a_folder_that_is_split(data, tmp_path):
    for part, names in (("train", "0123"), ("test", "45")):
        for name in ("disc", "square"):
            (tmp_path / "split" / part / name).mkdir(parents=True)
            for i in names:
                (data / name / f"{i}.png").rename(tmp_path / "split" / part / name / f"{i}.png")
    train, val, classes = encoders._read_folder(tmp_path / "split", FAST)
    assert (len(train), len(val), classes) == (8, 4, ["disc", "square"])


def test_table_beside_the_papers():
    log = [Epoch("ViT", 1, 0.7, 0.5, 0.7, 0.5, 1.0), Epoch("ViT", 2, 0.25, 0.75, 0.5, 0.625, 1.0)]
    log.append(Epoch("resnet18", 2, 0.5, 0.5, 0.5, 0.5, 1.0))
    assert encoder_table(log)[1:] == [
        ["resnet18", "0.5000", "0.5000", "0.5000", "0.5000", "", "", "", ""],
        ["ViT", "0.2500", "0.7500", "0.5000", "0.6250", "0.2082", "0.9098", "0.2934", "0.8819"],
    ]


def test_what_is_wrong_is_said(data, tmp_path):
    with pytest.raises(InvalidInputError, match="use 224 or a multiple of 64"):
        Settings(image_size=100)
    with pytest.raises(InvalidInputError, match="give 1 epoch"):
        Settings(epochs=0)
    with pytest.raises(UnknownNameError, match="did you mean GroupMixFormer"):
        train_encoders(["GroupMixForme"], data, tmp_path / "out", FAST, 0)
    with pytest.raises(InvalidInputError, match="is no data set"):
        train_encoders(SMALL, tmp_path / "nothing", tmp_path / "out", FAST, 0)
    (tmp_path / "one").mkdir()
    (data / "disc").rename(tmp_path / "one" / "disc")
    with pytest.raises(InvalidInputError, match=r"has the classes \['disc'\]"):
        train_encoders(SMALL, tmp_path / "one", tmp_path / "out", FAST, 0)


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(SaveError, match=r"log\.csv could not be written"):
        encoders._write_log(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"], "nothing is left beside it"


def test_command(data, tmp_path):
    out = tmp_path / "out"
    args = ["encoders", str(data), "--epochs", "1", "--image-size", "64", "--workers", "0", "--output", str(out)]
    done = CliRunner().invoke(app, [*args, "--encoder", SMALL[0], "--encoder", "CCT"], catch_exceptions=False)
    assert done.exit_code == 0
    assert {row["encoder"] for row in csv.DictReader((out / "log.csv").read_text().splitlines())} == {SMALL[0], "CCT"}
    assert re.search(r"^\| CCT +\|", (out / "table.md").read_text(), re.MULTILINE)
    assert "0.8909" in done.stdout, "the paper's figure"
    with Image.open(out / "curves.png") as curves:
        assert curves.width > 500
    with pytest.raises(InvalidInputError, match="made with other settings"):
        CliRunner().invoke(app, [*args, "--seed", "1"], catch_exceptions=False)
    for name, content in (("log.csv", "encoder,epoch,seconds\nCCT,one,2\n"), ("settings.json", "{")):
        (out / name).write_text(content)
        with pytest.raises(InvalidInputError, match=rf"{name} cannot be read .* remove it to begin again"):
            CliRunner().invoke(app, args, catch_exceptions=False)
