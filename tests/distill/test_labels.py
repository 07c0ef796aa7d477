"""Learning from people's masks. The models are tiny and untrained: what is checked needs no masks that mean something."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.annotations import AnnotatedImage, Instance, to_coco
from groupmix_sam.annotations.reader import Matched
from groupmix_sam.cli import app
from groupmix_sam.distill import ADAPT, DecoderRecipe, FrozenDecoder, Grid, ImageFile, Recipe, RunOptions, adapt
from groupmix_sam.distill.adaptation import hold_out_labelled
from groupmix_sam.distill.decoder import TrainedDecoder
from groupmix_sam.distill.decoder_stage import Prompts, Sample, Student, make_optimizer, train_decoder
from groupmix_sam.distill.labels import (
    Frame,
    LabelAsker,
    Labelled,
    choose_labelled,
    depths,
    draw_inside,
    encode_frames,
    innermost,
    label_ious,
    open_frames,
    recalibrate,
)
from groupmix_sam.errors import InvalidInputError, RunStoppedError
from groupmix_sam.weights import save_weights

SIZE = 128
GRID = Grid(SIZE)
SHAPE = (96, 128)  # of the images, which are not resized


def tiny(seed=0):
    torch.manual_seed(seed)
    return build_sam_groupmix(None, encoder="gmf_sam_test", image_size=SIZE).eval()


def block(x0, y0, x1, y1, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def boxes_of(i):
    return [(8 + 2 * i, 16, 40 + 2 * i, 56), (64, 40, 112, 88 - 2 * i)]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Eight images with two rectangles each, and their masks as a COCO file."""
    folder = tmp_path_factory.mktemp("line")
    annotated = []
    for i in range(8):
        image = Image.new("RGB", SHAPE[::-1], (60 + i, 60, 60))
        for number, (x0, y0, x1, y1) in enumerate(boxes_of(i)):
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=(220, 90 + 80 * number, 40))
        image.save(folder / f"{i}.png")
        annotated.append(AnnotatedImage(folder / f"{i}.png", SHAPE, [Instance(block(*box)) for box in boxes_of(i)]))
    (folder / "annotations.json").write_text(json.dumps(to_coco(annotated, folder)))
    return folder


@pytest.fixture(scope="module")
def labelled(line, tmp_path_factory):
    images = [ImageFile(line / f"{i}.png") for i in range(8)]
    frames, _ = open_frames(images, GRID)
    encoded = encode_frames(tiny().image_encoder, list(frames.values()), tmp_path_factory.mktemp("cache"))
    return [Labelled(frame, [Instance(block(*box)) for box in boxes_of(i)]) for i, frame in enumerate(encoded)]


def test_masks_and_boxes_on_the_decoders_grid():
    """An image of 192 x 256 is halved; a pixel of a mask then stands for 8 x 8 of the image."""
    frame = Frame(ImageFile(Path("a.png")), "", (192, 256), GRID)
    entry = Labelled(frame, [Instance(block(8, 16, 20, 40, (192, 256))), Instance(block(250, 180, 256, 192, (192, 256)))])
    masks = entry.masks([0, 1])
    assert masks.shape == (2, 24, 32)
    expected = np.zeros((24, 32))
    expected[2:5, 1] = 1.0
    expected[2:5, 2] = 0.5
    np.testing.assert_allclose(masks[0].numpy(), expected, atol=0.01)
    assert masks[1].sum().item() == pytest.approx(6 * 12 / 64, abs=0.05)
    assert entry.boxes([0, 1]).tolist() == [[4.0, 8.0, 10.0, 20.0], [125.0, 90.0, 128.0, 96.0]]


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_image_and_its_masks_stay_together(turn, tmp_path):
    """As Pillow turns and mirrors them; features are of the turned image, in a file of its own."""
    image = Image.new("RGB", SHAPE[::-1], (60, 60, 60))
    x0, y0, x1, y1 = 8, 16, 40, 88
    ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=(220, 90, 40))
    image.save(tmp_path / "a.png")
    frames, _ = open_frames([ImageFile(tmp_path / "a.png")], GRID)
    entry = Labelled(*frames.values(), [Instance(block(x0, y0, x1, y1))]).turned(turn)
    expected = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turn >= 4 else image
    if turn % 4:
        expected = expected.transpose(getattr(Image.Transpose, f"ROTATE_{90 * (turn % 4)}"))
    pixels = np.asarray(expected)
    np.testing.assert_array_equal(entry.instances[0].mask, pixels[..., 0] == 220)
    assert entry.frame.size == pixels.shape[:2] == entry.instances[0].size
    height, width = entry.frame.size
    assert entry.frame.cells == (height // 16, width // 16)
    red = entry.frame.pixels()[0, 0, :height, :width].numpy()
    np.testing.assert_array_equal(red > 0, pixels[..., 0] == 220)
    encoder = tiny().image_encoder
    (plain, turned) = encode_frames(encoder, [*frames.values(), entry.frame], tmp_path / "cache")
    assert (plain.features == turned.features) == (turn == 0)
    with torch.no_grad():
        torch.testing.assert_close(turned.read(), encoder(entry.frame.pixels()), atol=2e-3, rtol=2e-3)


def test_what_cannot_be_learnt_is_counted_and_named(tmp_path):
    """Other sizes, turned images, crowds, empty and tiny masks, copies, damaged and narrow images."""
    for name, size in (
        ("good", (128, 96)),
        ("wrong", (64, 48)),
        ("turned", (96, 128)),
        ("bare", (128, 90)),
        ("thin", (500, 4)),
    ):
        Image.new("RGB", size, (len(name), size[0] % 256, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "good.png").read_bytes())
    (tmp_path / "damaged.png").write_bytes(b"no image")
    good = Instance(block(8, 16, 40, 56))
    crowd = Instance(block(60, 16, 80, 56), iscrowd=True)
    instances = {
        "good": [good, crowd, Instance(block(0, 0, 0, 0)), Instance(block(5, 5, 6, 6))],
        "bare": [Instance(block(1, 1, 1, 1, (90, 128)))],
        "thin": [Instance(block(1, 1, 3, 3, (4, 500)))],
    }
    images = {}
    for name in ("good", "copy", "wrong", "turned", "bare", "thin", "damaged"):
        image = ImageFile(tmp_path / f"{name}.png")
        found = instances.get(name, [good])
        images[image] = AnnotatedImage(image.path, found[0].size, found)
    labelled, left_out = choose_labelled(Matched(images, ["first"]), GRID)
    assert [(entry.frame.image.path.name, len(entry.instances)) for entry in labelled] == [("good.png", 1)]
    here = f"{tmp_path}/"
    assert [line.replace(here, "") for line in left_out] == [
        "first",
        "labelled images that cannot be read or are too narrow: 2 (thin.png, damaged.png)",
        "labelled images that are copies of another: 1 (copy.png)",
        "labels of crowds: 1 (2 of good.png)",
        "labels of no pixel, or outside of the image: 2 (3 of good.png, 1 of bare.png)",
        "labels too small to be seen at 128 pixels: 1 (4 of good.png)",
        "labelled images of another size than their labels: 2 (wrong.png: 64 x 48 pixels, labels of 128 x 96, turned.png: "
        "96 x 128 pixels, labels of 128 x 96, as if turned: save the image upright)",
        "labelled images without a mask to learn: 1 (bare.png)",
    ]


@pytest.mark.parametrize(
    ("count", "every", "held_out", "training"),
    [(2, 1, [0], [1]), (5, 1, [2], [0, 1, 3, 4]), (20, 1, [4, 5, 14, 15], [*range(4), *range(6, 14), *range(16, 20)])],
)
def test_labelled_frames_are_held_out_in_blocks(count, every, held_out, training):
    found = [[int(entry.frame.image.path.stem) for entry in part] for part in hold_out_labelled(*many(count, every))]
    assert found == [training, held_out] if count > 2 else sorted(found[0] + found[1]) == [0, 1]


def many(count, every):
    """Return so many labelled frames, and all frames of the line, of which one in `every` is labelled."""
    frames = [ImageFile(Path(f"line/{i}.png")) for i in range(count * every)]
    return [Labelled(Frame(frame, "", SHAPE, GRID), []) for frame in frames[::every]], frames


def test_labelled_neighbours_of_held_out_frames_are_left_out():
    """Of 200 frames that are all labelled four on either side are left out; of 20, ten apart, none is."""
    training, held_out = ([int(entry.frame.image.path.stem) for entry in part] for part in hold_out_labelled(*many(200, 1)))
    assert len(held_out) == 40
    assert len(training) == 200 - 40 - 4 * 2 * 4
    assert min(abs(i - j) for i in training for j in held_out) == 5
    assert [len(part) for part in hold_out_labelled(*many(20, 10))] == [16, 4]


def test_blocks_lie_where_a_fifth_of_the_masks_is():
    """Of ten frames two are held out. The middle two have one mask each of 22; two on, 4 and 1 are nearest to 22 / 5."""
    counts = [1, 1, 1, 9, 1, 1, 1, 4, 1, 2]
    frames = [ImageFile(Path(f"line/{i}.png")) for i in range(10)]
    labelled = [
        Labelled(Frame(frame, "", SHAPE, GRID), [Instance(block(0, 0, 8, 8))] * count)
        for frame, count in zip(frames, counts, strict=True)
    ]
    _, held_out = hold_out_labelled(labelled, frames)
    assert [entry.frame.image.path.stem for entry in held_out] == ["6", "7"]


def test_depths_and_innermost_points_by_hand():
    masks = torch.zeros(2, 7, 9, dtype=torch.bool)
    masks[0, 1:6, 1:8] = masks[1, 0, 8] = True
    depth = depths(masks)
    assert depth[0, 3].tolist() == [0, 1, 2, 3, 3, 3, 2, 1, 0]
    assert depth[1].sum() == 1
    assert innermost(masks, 16).tolist() == [[18.0, 14.0], [34.0, 2.0]]
    points = draw_inside(masks, 200, 16, torch.Generator().manual_seed(0)) / 4
    x, y = points.long().unbind(2)
    assert masks[torch.arange(2)[:, None], y, x].all()
    central = depth[0][y[0], x[0]] >= 2
    assert 0.6 < central.float().mean() < 0.85, "half of them, and of the others the share that lies there, 15 of 35"


def test_a_single_point_teaches_the_nearest_mask_and_the_one_that_is_picked():
    """By hand: of the three masks the one with the least error and the one with the best score; the single mask by half."""
    sam = tiny()
    features = 0.1 * torch.randn(1, 256, 6, 8)
    points = torch.tensor([[[40.0, 40.0]], [[90.0, 60.0]]])
    target = torch.full((2, 1, 24, 32), -3.0)
    target[:, :, 5:15, 5:20] = 3.0
    prompts = Prompts(points, None, None, target, torch.ones(2, 1), torch.full((2, 1), 0.5), ambiguous=True)
    student = Student(TrainedDecoder(sam))
    terms = student(Sample(features, [prompts], None), 0.0, 0)
    with torch.no_grad():
        out = FrozenDecoder(sam)(features, points)
    expected, scores = 0.0, []
    for p in range(2):
        errors = []
        for m in range(4):
            one = Prompts(points[p : p + 1], None, None, target[p : p + 1], torch.ones(1, 1), torch.ones(1, 1))
            errors.append(error_of(out.logits[p, m], one.logits[0, 0]))
            a, b = out.logits[p, m] > 0, target[p, 0] > 0
            scores.append((out.scores[p, m] - (a & b).sum() / (a | b).sum()).item() ** 2)
        picked = 1 + int(out.scores[p, 1:].argmax())
        expected += (0.7 * min(errors[1:]) + 0.3 * errors[picked] + 0.5 * errors[0]) / 1.5 / 2
    assert terms["masks"].item() == pytest.approx(expected, rel=1e-4)
    assert terms["scores"].item() == pytest.approx(np.mean(scores), rel=1e-4)


def error_of(logits, target):
    """Cross-entropy above its least, and dice, by their formulas."""
    p, q = logits.double().sigmoid(), target.double().sigmoid()
    entropy = -(q * p.log() + (1 - q) * (1 - p).log()).mean() + (q * q.log() + (1 - q) * (1 - q).log()).mean()
    dice = 1 - (2 * (p * q).sum() + 1) / ((p * p).sum() + (q * q).sum() + 1)
    return (entropy + dice).item()


def test_prompts_are_of_the_kinds_that_are_asked_for(labelled):
    sam = tiny()
    seen = {kind: set() for kind in ("both", "box", "point")}
    for kind, found in seen.items():
        asker = LabelAsker(sam, labelled[1:], labelled[:1], [], DecoderRecipe(instances=2), 0, kind)
        for number in range(12):
            for prompts in asker(number).prompts:
                if prompts.logits.shape[1] > 1 or not (prompts.scores == 1).all():
                    continue  # replay
                count = 0 if prompts.points is None else prompts.points.shape[1]
                found.add((min(count, 2), prompts.boxes is not None, prompts.ambiguous))
                if prompts.points is not None:
                    x, y = (prompts.points / 4).long().unbind(2)
                    rows = torch.arange(len(x))[:, None]
                    assert (prompts.logits[rows, 0, y, x] > 0).all()
    assert seen["box"] == {(0, True, False), (1, True, False)}
    assert seen["point"] == {(1, False, True), (2, False, False)}
    assert seen["both"] == seen["box"] | seen["point"]


def test_each_label_counts_alike(labelled):
    """Of eight instances, four are asked for at a time, in two draws an epoch; two have the same weight in one."""
    full = labelled[0]._replace(instances=labelled[0].instances * 4)
    asker = LabelAsker(tiny(), [full, labelled[1]], labelled[2:3], [], DecoderRecipe(instances=4), 0)
    assert asker.count == 3
    asked = [sum(len(p.weights) for p in prompts) for prompts in (asker._ask(e, np.random.default_rng(0)) for e in asker.drawn)]
    assert asked == [4, 4, 2]
    crowded = labelled[0]._replace(instances=labelled[0].instances * 10)
    asker = LabelAsker(tiny(), labelled, [crowded, labelled[1]], [], DecoderRecipe(), 0)
    assert [len(entry.instances) for entry in asker.checked] == [8, 2], "checks on the way are of a few"
    assert {float(w) for e in asker.drawn for p in asker._ask(e, np.random.default_rng(0)) for w in p.weights} == {0.25}


def test_replay_leaves_labels_alone(labelled, monkeypatch):
    """On labelled frames the starting model is asked where nothing is labelled, for masks that hold little of it."""
    asker = LabelAsker(tiny(), labelled[1:], labelled[:1], [], DecoderRecipe(points=8, instances=2), 0)
    frame, known = labelled[1].frame, labelled[1].masks([0, 1]).amax(0) > 0.5
    counts = []
    for share in (1.0, 0.3, 0.0):
        monkeypatch.setattr("groupmix_sam.distill.labels.LABELLED_SHARE", share)
        asked = [prompts for seed in range(4) for prompts in asker._replay(frame, known, np.random.default_rng(seed))]
        counts.append(sum(len(prompts.logits) for prompts in asked))
        for prompts in asked:
            masks = prompts.logits > 0
            held = (masks & known).sum((2, 3)) / masks.sum((2, 3)).clamp(min=1)
            assert (held[prompts.weights > 0] <= share).all()
            if prompts.points is not None:
                x, y = (prompts.points[:, 0] / 4).long().unbind(1)
                assert not known[y, x].any()
    assert counts[0] > 0
    assert counts == sorted(counts, reverse=True)
    anywhere = asker._replay(frame, None, np.random.default_rng(0))
    assert 1 <= len(anywhere[0].points) <= 8


def test_pull_goes_back_to_the_start():
    """Without a gradient each step goes 1 - pull x rate of the way from where the weights began."""
    student = Student(TrainedDecoder(tiny()))
    optimizer = make_optimizer(student, DecoderRecipe(lr=1e-2, weight_decay=0.0, pull=10.0))
    weight = student.decoder.mask_decoder.mask_tokens.weight
    start = weight.detach().clone()
    weight.data += 1.0
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), start + 0.9)


def test_the_last_good_check_is_the_result(labelled, tmp_path, monkeypatch):
    """What is worse by more than noise, 0.05 of four masks, is dropped; where all was, the start is the result."""
    sam = tiny(3)
    start = {name: value.clone() for name, value in sam.mask_decoder.state_dict().items()}
    how = DecoderRecipe(epochs=1, instances=2, points=1, corrections=0.0, ema_decay=0.0, lr=1e-3)
    recipe = Recipe(epochs=0, ridge_start=False, decoder=how)
    for worst, name in ((0.9, "start"), (0.0, "later")):
        asker = LabelAsker(sam, labelled[2:], labelled[:2], [], how, 0)
        scores = iter([worst, worst, 0.5, 0.46, 0.4, *[0.1] * 20])
        seen = []

        def measure(decoder, encoder=None, *, quick=False, scores=scores, seen=seen):
            seen.append({name: value.clone() for name, value in decoder.mask_decoder.state_dict().items()})
            return dict.fromkeys(("box_iou", "point_iou"), next(scores))

        monkeypatch.setattr(asker, "measure", measure)
        model = tiny(3)
        train_decoder(model, asker, tmp_path / name, recipe)
        expected = seen[0] if name == "start" else seen[3]
        found = model.mask_decoder.state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert all(torch.equal(found[key], value) for key, value in start.items()) == (name == "start")
        saved = load_file(tmp_path / name / "decoder.safetensors")
        assert all(torch.equal(saved[key], value) for key, value in expected.items())


def test_the_result_is_the_blend_with_the_start_that_is_best(labelled, tmp_path, monkeypatch):
    how = DecoderRecipe(epochs=1, instances=2, points=1, corrections=0.0, ema_decay=0.0, lr=1e-3)
    asker = LabelAsker(tiny(3), labelled[2:], labelled[:2], [], how, 0)
    # Before, the start, three checks; shares of 1, 0.75, 0.5, 0.25 and 0; after.
    scores = iter([0.5, 0.5, 0.5, 0.5, 0.5, 0.1, 0.2, 0.3, 0.9, 0.4, 0.8])
    monkeypatch.setattr(asker, "measure", lambda *_, **__: dict.fromkeys(("box_iou", "point_iou"), next(scores)))
    sam = tiny(3)
    record = train_decoder(sam, asker, tmp_path, Recipe(epochs=0, ridge_start=False, decoder=how))
    assert (record["blend"], record["after"]["box_iou"]) == (0.25, 0.8)
    kept = load_file(tmp_path / "last_good_check.safetensors")
    start, saved = tiny(3).mask_decoder.state_dict(), load_file(tmp_path / "decoder.safetensors")
    for name, found in sam.mask_decoder.state_dict().items():
        torch.testing.assert_close(found, 0.75 * start[name] + 0.25 * kept[f"decoder.mask_decoder.{name}"])
        assert torch.equal(saved[name], found)


def test_the_predicted_iou_is_fitted_by_hand():
    """True IoUs on a line of the predicted ones: the scores then are the true ones, and the same mask is picked."""
    sam = tiny()
    features, points = 0.1 * torch.randn(1, 256, 6, 8), torch.rand(40, 2) * 90
    with torch.no_grad():
        before = FrozenDecoder(sam)(features, points)
    picked = before.scores[:, 1:].max(1).values.numpy()
    box = before.scores[:, 0].numpy()
    found = [
        {"point_score": picked[i::2], "point": 0.2 + 0.5 * picked[i::2], "box_score": box[i::2], "box": 1.5 * box[i::2]}
        for i in range(2)
    ]
    record = recalibrate(sam, found)
    assert record["point"]["slope"] == pytest.approx(0.5, abs=1e-3)
    assert record["point"]["offset"] == pytest.approx(0.2, abs=1e-3)
    assert record["point"]["error_after"] < 1e-3 < record["point"]["error_before"]
    with torch.no_grad():
        after = FrozenDecoder(sam)(features, points)
    torch.testing.assert_close(after.scores[:, 1:], 0.2 + 0.5 * before.scores[:, 1:], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.scores[:, 0], 1.5 * before.scores[:, 0], atol=1e-3, rtol=1e-3)
    assert torch.equal(after.logits, before.logits)


def test_ious_with_labels_by_hand(labelled):
    decoder, entry = FrozenDecoder(tiny()), labelled[0]
    found = label_ious(decoder, entry)
    with torch.no_grad():
        out = decoder(entry.frame.read("cpu"), boxes=torch.tensor([[*map(float, boxes_of(0)[1])]]))
    a, b = (out.logits[0, 0, :24, :32] > 0).numpy(), block(*boxes_of(0)[1])[::4, ::4]
    assert found["box"][1] == pytest.approx((a & b).sum() / (a | b).sum())
    assert found["box_score"][1] == pytest.approx(out.scores[0, 0].item(), abs=1e-5)


def test_command(line, tmp_path):
    """Labels in, weights out whose mask decoder alone has changed, with the reports, the plot and a card that says of what."""
    start = save_weights(tiny(), tmp_path / "start.safetensors")
    out = tmp_path / "run"
    args = ["adapt", line, "--labels", line / "annotations.json", "--output", out, "--checkpoint", start, "--minutes", "0.005"]
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0
    assert (
        "labelled images to train on: 7 with 14 masks; held out in blocks: 1 with 2 masks; left out beside them: 0"
        in done.output
    )
    sam, before = build_sam_groupmix(out / "weights"), tiny().state_dict()
    changed = {name for name, value in sam.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("mask_decoder.") for name in changed)
    with safe_open(out / "weights" / "model.safetensors", framework="pt") as f:
        record = json.loads(f.metadata()["training"])
    assert [record["decoder"][name] for name in ("images", "views", "instances")] == [7, 56, 14]
    assert record["adapted_to"] == "7 labelled images with 14 instances, from annotations.json"
    assert (
        "Adapted to 7 labelled images with 14 instances, from annotations.json." in (out / "weights" / "README.md").read_text()
    )
    for kind in ("box", "point"):
        report = json.loads((out / f"label_iou_{kind}.json").read_text())
        assert report["before"] == [pytest.approx(np.mean(report["ious_before"]))]
        assert f"IoU with the labels by {kind} after: {report['after'][0]:.3f}" in done.output
        assert record["label_iou"][kind]["difference"] == report["difference"]
    assert (out / "decoder" / "loss.png").is_file()
    assert len(list((out / "cache").glob("student-*"))) == 7 * 8 + 1, "those to train on are turned and mirrored"


def test_the_encoder_may_learn_too(labelled, tmp_path):
    """At a low rate, from the pixels; BatchNorm's statistics stay, and the result is what both files hold."""
    sam, before = tiny(), tiny().image_encoder.state_dict()
    how = DecoderRecipe(epochs=1, instances=1, points=1, ema_decay=0.0, encoder_rate=0.1)
    asker = LabelAsker(sam, labelled[2:4], labelled[:1], [], how, 0)
    asker.keeps_best = False
    train_decoder(sam, asker, tmp_path / "run", Recipe(epochs=0, ridge_start=False, decoder=how))
    after = sam.image_encoder.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"neck.proj.weight", "stem.0.conv.weight"} & moved
    assert not any("running" in name or "num_batches" in name for name in moved)
    saved = load_file(tmp_path / "run" / "encoder.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in after.items())


def test_a_stopped_run_goes_on_to_the_same_weights(line, tmp_path, monkeypatch):
    start = save_weights(tiny(), tmp_path / "start.safetensors")
    recipe = replace(ADAPT, decoder=DecoderRecipe(epochs=1 / 8, instances=2, points=1, ema_decay=0.5))  # of eight views each
    options = {"labels": line / "annotations.json", "checkpoint": start, "cache": tmp_path / "cache"}
    adapt(line, tmp_path / "whole", recipe, **options)
    counts = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr("groupmix_sam.distill.loop._agreed", lambda *_: next(counts) == 1)
        with pytest.raises(RunStoppedError, match="after step 2 of 4"):
            adapt(line, tmp_path / "run", recipe, **options)
    adapt(line, tmp_path / "run", recipe, RunOptions(resume=True), **options)
    whole, resumed = (load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_what_is_refused(line, tmp_path):
    start = save_weights(tiny(), tmp_path / "start.safetensors")
    content = json.loads((line / "annotations.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    for image in content["images"]:
        image["file_name"] = str(line / image["file_name"])
    (tmp_path / "one.json").write_text(json.dumps(content))
    for options, match in (
        ({}, "neither a teacher nor labels"),
        (
            {"labels": line / "annotations.json", "prompt_kind": "boxes"},
            "the prompt kind is 'boxes': use 'both', 'box', 'point'",
        ),
        ({"labels": tmp_path / "one.json"}, r"masks to learn in 1 of the images.*labelled images without a mask to learn: 7 "),
    ):
        with pytest.raises(InvalidInputError, match=match):
            adapt(line, tmp_path / "run", checkpoint=start, **options)
