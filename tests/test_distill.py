import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix, encoders
from groupmix_sam.cli import app
from groupmix_sam.distill import Phase, Recipe, cache_features, distill, find_pictures, load_teacher, r2_score
from groupmix_sam.distill import train as training
from groupmix_sam.distill.data import crop_batches, normalize, whole_pictures
from groupmix_sam.errors import InvalidInputError, WeightsError
from groupmix_sam.weights import save_weights

SIZE = 128


class PlainTeacher(torch.nn.Module):
    """Maps that can be worked out by hand: each channel is a fixed mixture of the colours' means in 16 x 16 pixels."""

    def __init__(self, key="plain"):
        super().__init__()
        self.key = key
        g = torch.Generator().manual_seed(3)
        self.weights = {n: torch.randn(c, 3, generator=g) for n, c in (("features", 256), ("hint_in", 160), ("hint_out", 160))}

    def forward(self, x):
        cells = torch.nn.functional.avg_pool2d(x, 16)
        return {name: torch.einsum("oc,bchw->bohw", w, cells) for name, w in self.weights.items()}


def paint(path, width, height, seed):
    """Draw coarse random blocks of colour."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    blocks.resize((width, height), Image.NEAREST).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for i in range(6):
        paint(folder / ("below" if i % 2 else ".") / f"{i}.png", 160 + 8 * i, 120, i)
    return folder


@pytest.fixture(scope="module")
def cached(photos, tmp_path_factory):
    files, unreadable = cache_features(find_pictures(photos), PlainTeacher(), tmp_path_factory.mktemp("cache"), SIZE)
    assert unreadable == []
    return files


def test_find_pictures(photos, tmp_path):
    assert [p.name for p in find_pictures(photos)] == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
    with pytest.raises(InvalidInputError, match="has no picture in it"):
        find_pictures(tmp_path)
    with pytest.raises(InvalidInputError, match="there is no folder"):
        find_pictures(tmp_path / "nothing")


def test_cache_holds_what_the_teacher_says_without_padding(photos, tmp_path):
    teacher = PlainTeacher()
    (path,), _ = cache_features([photos / "0.png"], teacher, tmp_path, SIZE)
    held = load_file(path)
    resized = np.asarray(Image.open(photos / "0.png").resize((128, 96), Image.BILINEAR))
    assert np.array_equal(held["image"].numpy(), resized)
    expected = teacher(normalize(torch.tensor(resized)[None]))["features"][0].permute(1, 2, 0)
    assert held["features"].shape == (6, 8, 256)
    torch.testing.assert_close(held["features"].float(), expected, rtol=2e-3, atol=2e-3)


def test_cache_is_made_once_and_names_what_cannot_be_read(photos, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no picture")
    paint(tmp_path / "a" / "good.png", 64, 64, 1)
    paint(tmp_path / "a" / "narrow.png", 400, 4, 1)
    pictures = find_pictures(tmp_path / "a")

    class Tired(PlainTeacher):
        def forward(self, _x):
            raise AssertionError("asked again")

    first, skipped = cache_features(pictures, PlainTeacher(), tmp_path / "c", SIZE)
    again, _ = cache_features(pictures, Tired(), tmp_path / "c", SIZE)
    assert first == again
    assert [p.name for p in skipped] == ["broken.jpg", "narrow.png"]
    with pytest.raises(AssertionError, match="asked again"):
        cache_features(pictures, Tired(key="another"), tmp_path / "c", SIZE)
    with pytest.raises(InvalidInputError, match="none of the 1 pictures"):
        cache_features(pictures[:1], PlainTeacher(), tmp_path / "c", SIZE)


def test_crops_are_parts_of_pictures_with_their_features(cached):
    """Whatever crop is drawn, the teacher says the same of it as is written beside it."""
    teacher = PlainTeacher()
    batches = crop_batches(cached, 64, 2, torch.Generator().manual_seed(0))
    drawn = [next(batches) for _ in range(3)]
    for batch in drawn:
        assert batch["input"].shape == (2, 3, 64, 64)
        for name, expected in teacher(batch["input"]).items():
            torch.testing.assert_close(batch[name], expected.permute(0, 2, 3, 1), rtol=5e-3, atol=5e-3)
    firsts = {tuple(crop["input"][i, :, 0, 0].tolist()) for crop in drawn for i in range(2)}
    assert len(firsts) == len(cached), "each picture comes once before any comes again"


def test_crops_of_panoramas_are_as_large_as_can_be(cached):
    """The widest of the pictures, all 128 on the long side, has 6 x 16 pixels on the short one."""
    batch = next(crop_batches(cached, 256, 1, torch.Generator()))
    assert batch["input"].shape == (1, 3, 96, 96)
    assert batch["features"].shape == (1, 6, 6, 256)


def test_r2_by_hand(cached):
    """The teacher's own maps score 1, its channels' means score 0."""
    maps = [p["features"] for p in whole_pictures(cached, SIZE)]
    mean = torch.cat([m.flatten(0, 2) for m in maps]).double().mean(0).float()
    perfect = lambda x: PlainTeacher()(x)["features"]  # noqa: E731
    flat = lambda x: mean[None, :, None, None].expand(1, 256, SIZE // 16, SIZE // 16)  # noqa: E731
    assert r2_score(perfect, cached, SIZE) == pytest.approx(1.0, abs=1e-4)
    assert r2_score(flat, cached, SIZE) == pytest.approx(0.0, abs=1e-4)


def student():
    return training.Student(timm.create_model("gmf_sam_test"))


def test_neck_is_fitted_by_least_squares(cached):
    """What the ridge leaves of the error is what numpy's least squares leaves."""
    torch.manual_seed(0)
    encoder = timm.create_model("gmf_sam_test").eval()
    batch = next(crop_batches(cached, 64, 6, torch.Generator().manual_seed(0)))
    training.fit_neck(encoder, iter([batch]), ridge=1e-9)
    with torch.no_grad():
        seen = []
        encoder.neck.proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        out = encoder(batch["input"]).permute(0, 2, 3, 1).reshape(-1, 256)
    x = seen[0].permute(0, 2, 3, 1).reshape(-1, 80).double().numpy()
    y = batch["features"].reshape(-1, 256).double().numpy()
    best = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.square(out.numpy() - y).mean() == pytest.approx(np.square(best - y).mean(), rel=0.05)


def test_fitting_the_neck_leaves_out_the_padding(cached):
    """What the features are in the padding makes no difference."""
    encoder = timm.create_model("gmf_sam_test").eval()
    picture = next(whole_pictures(cached, SIZE))
    rows = picture["features"].shape[1]
    assert rows < SIZE // 16
    fitted = []
    for padding in (0.0, 1e3):

        def fill(_module, args, padding=padding):
            padded = torch.full_like(args[0][:, :, rows:], padding)
            return (torch.cat([args[0][:, :, :rows], padded], dim=2),)

        handle = encoder.neck.proj.register_forward_pre_hook(fill)
        training.fit_neck(encoder, iter([picture]), ridge=1e-3)
        handle.remove()
        fitted.append(encoder.neck.proj.weight.detach().clone())
    torch.testing.assert_close(*fitted)


def test_start_from_teacher(shared):
    """MobileSAM's own MLP and local convolution, run by MobileSAM's rules, give what the student's block gives."""
    _, weights = load_teacher(shared / "weights" / "mobile_sam.safetensors")
    encoder = timm.create_model("gmf_sam_2282").eval()
    training.start_from_teacher(encoder, weights)
    teacher = timm.create_model("sam_tiny_vit_5m").eval()
    teacher.load_state_dict(encoders.tiny_vit.checkpoint_filter_fn(weights, teacher))
    x = torch.randn(2, 4, 4, 160)
    with torch.no_grad():
        for ours, theirs in zip(encoder.stages[2].blocks[:6], teacher.stages[2].blocks, strict=True):
            torch.testing.assert_close(ours.mlp(ours.norm2(x)), theirs.mlp(x), rtol=1e-4, atol=1e-4)
            image = x.permute(0, 3, 1, 2)
            torch.testing.assert_close(image + ours.cpe(image), theirs.local_conv(image), rtol=1e-4, atol=1e-4)


def test_padding_does_not_count(cached):
    """The loss of a whole picture does not depend on what the student says of the padding."""
    model = student().eval()
    batch = next(whole_pictures(cached, SIZE))
    rows = batch["features"].shape[1]
    variance = dict.fromkeys(training.MAPS, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    losses = training.training_step(model, optimizer, batch, variance, 0.0, 0.5)
    with torch.no_grad():
        out = model(batch["input"])
    expected = (out["features"][:, :rows] - batch["features"]).square().mean().item()
    assert rows < SIZE // 16
    assert losses["features"] == pytest.approx(expected, rel=1e-4)


def test_average():
    """Three steps by hand, the last of them at the highest decay."""
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    value = 0.0
    average.weight.data.fill_(value)
    for step, target in enumerate((1.0, 3.0, 2.0)):
        model.weight.data.fill_(target)
        training.update_average(average, model, 0.15, step)
        decay = min(0.15, (1 + step) / (10 + step))
        value = decay * value + (1 - decay) * target
    assert average.weight.item() == pytest.approx(value)


def test_distilling_learns_the_teacher(cached, tmp_path):
    """In a few seconds the student gets nearer to pictures that it was not trained on than its start."""
    torch.manual_seed(0)
    encoder = timm.create_model("gmf_sam_test", img_size=SIZE)
    recipe = Recipe(minutes=0.2, phases=(Phase(0.0, 64, 4), Phase(0.8, 0, 1)))
    average = distill(encoder, {}, cached[2:], cached[:2], tmp_path / "run", recipe, SIZE)
    score = r2_score(average, cached[:2], SIZE)
    assert score > 0.5
    saved = load_file(tmp_path / "run" / "encoder.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in average.state_dict().items())
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert float(rows[-1]["r2"]) == pytest.approx(score, abs=1e-3)
    assert {row["crop"] for row in rows} >= {"0"}


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"minutes": 0}, "minutes is 0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"minutes": "3"}, "minutes is '3'"),
        ({"warmup": 0}, "warmup is 0"),
        ({"phases": ()}, "the phases begin at"),
        ({"phases": (Phase(0.5, 64, 1),)}, "the phases begin at"),
        ({"phases": (Phase(0.0, 8, 1),)}, "multiple of 16"),
        ({"phases": (Phase(0.0, 64, 0),)}, "one or more"),
    ],
)
def test_bad_recipe(kwargs, match):
    with pytest.raises(InvalidInputError, match=match):
        Recipe(**kwargs)


@pytest.mark.parametrize("name", ["sam_resnet18", "sam_tiny_vit_5m"])
def test_students_that_it_does_not_fit(cached, tmp_path, name):
    with pytest.raises(InvalidInputError, match="cannot be distilled here"):
        distill(timm.create_model(name), {}, cached[2:], cached[:2], tmp_path / "run", Recipe(), SIZE)
    with pytest.raises(InvalidInputError, match="0 held out"):
        distill(timm.create_model("gmf_sam_test"), {}, cached, [], tmp_path / "run", Recipe(), SIZE)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_none(tmp_path):
    path = save_weights(build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="not MobileSAM"):
        load_teacher(path)


@pytest.fixture(scope="module")
def mobile_sam(tmp_path_factory):
    """An untrained MobileSAM under MobileSAM's names, so that this runs without the real one."""
    sam = build_sam_groupmix(None, encoder="sam_tiny_vit_5m")
    back = {"stages.0.": "layers.0.", "patch_embed.conv1.": "patch_embed.seq.0.", "patch_embed.conv2.": "patch_embed.seq.2."}
    back |= {f"stages.{i}.downsample.": f"layers.{i - 1}.downsample." for i in (1, 2, 3)}
    back |= {f"stages.{i}.": f"layers.{i}." for i in (1, 2, 3)}
    back |= {f"neck.{ours}.": f"neck.{i}." for i, ours in enumerate(("conv1", "norm1", "conv2", "norm2"))}
    state_dict = {}
    for key, value in sam.state_dict().items():
        name = key.removeprefix("image_encoder.")
        if name != key:
            ours = next(o for o in back if name.startswith(o))
            key = "image_encoder." + name.replace(ours, back[ours], 1).replace(".conv.weight", ".c.weight")
        state_dict[key] = value
    path = tmp_path_factory.mktemp("teacher") / "mobile_sam.pt"
    torch.save(state_dict, path)
    return path


def test_command(mobile_sam, photos, tmp_path):
    """The whole way: pictures in, weights out that the builder loads, with the teacher's own decoder."""
    out = tmp_path / "run"
    args = ["distill", str(photos / "below"), "--teacher", str(mobile_sam), "--output", str(out), "--minutes", "0.05"]
    done = CliRunner().invoke(app, args, catch_exceptions=False)
    assert done.exit_code == 0
    assert "3 pictures" in done.stdout
    sam = build_sam_groupmix(out / "weights")
    teacher = torch.load(mobile_sam, weights_only=True)
    assert torch.equal(sam.mask_decoder.iou_token.weight, teacher["mask_decoder.iou_token.weight"])
    trained = load_file(out / "encoder.safetensors")
    assert torch.equal(sam.image_encoder.neck.proj.weight, trained["neck.proj.weight"])
