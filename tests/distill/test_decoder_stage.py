"""The decoder stage. Where masks have to mean something it has real weights, on small images of plain shapes."""

import json
import signal
from copy import deepcopy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from groupmix_sam import build_sam_groupmix
from groupmix_sam.distill import DecoderRecipe, FrozenDecoder, Grid, Recipe, RunOptions, cache_features, find_images
from groupmix_sam.distill.cache import write_tensors
from groupmix_sam.distill.data import as_input
from groupmix_sam.distill.decoder import TrainedDecoder
from groupmix_sam.distill.decoder_stage import (
    EncodedImage,
    Prompts,
    Sample,
    Student,
    TeacherAsker,
    are_instances,
    ask,
    correct,
    encode_images,
    feature_error,
    image_losses,
    input_images,
    make_optimizer,
    move_boxes,
    pick_instances,
    points_in,
    step_seconds,
    train_decoder,
)
from groupmix_sam.errors import InvalidInputError

from ..processes import python, start, together
from ..release import ALL
from .conftest import PlainTeacher, rows_of, step_of

SIZE = 256
CPU = torch.device("cpu")


class Encoder:
    """An encoder as a teacher."""

    key = "real"
    image_size = None
    channels = {"features": 256}  # noqa: RUF012

    def __init__(self, sam):
        self.encoder = sam.image_encoder

    @torch.no_grad()
    def __call__(self, x):
        return {"features": self.encoder(x)}


@pytest.fixture(scope="module")
def sam():
    return build_sam_groupmix(image_size=SIZE)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Three images of three discs or squares each, with their boxes, x0, y0, x1, y1."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    boxes = []
    for i in range(3):
        image = Image.fromarray(rng.normal(70, 8, (192, 256)).clip(0, 255).astype(np.uint8)).convert("RGB")
        for j in range(3):
            x, y, r = 45 + 80 * j + int(rng.integers(-10, 10)), int(rng.integers(50, 140)), int(rng.integers(20, 36))
            pen = ImageDraw.Draw(image)
            (pen.ellipse if j % 2 else pen.rectangle)(
                (x - r, y - r, x + r, y + r), fill=tuple(rng.integers(120, 255, 3).tolist())
            )
            boxes.append((i, [x - r, y - r, x + r, y + r]))
        image.save(folder / f"{i}.png")
    return folder, boxes


@pytest.fixture(scope="module")
def encoded(sam, shapes, tmp_path_factory):
    """The teacher's features are the encoder's; the student's are the same, blurred, weaker and shifted."""
    folder = tmp_path_factory.mktemp("cache")
    shift = 0.05 * torch.randn(256, 1, 1, generator=torch.Generator().manual_seed(0))
    images = []
    for image in find_images(shapes[0]):
        ((entry,), _) = cache_features([image], Encoder(sam), folder, Grid(SIZE))
        with torch.no_grad():
            features = sam.image_encoder(as_input(load_file(entry.image)["image"], SIZE))
        features = 0.5 * torch.nn.functional.avg_pool2d(features, 3, 1, 1, count_include_pad=False)[0] + shift
        path = folder / f"student-{entry.maps.name}"
        write_tensors(path, {"features": features.half().contiguous()})
        images.append(EncodedImage(entry, path))
    return images


def train(sam, teacher, images, held_out, folder, recipe, options=RunOptions()):  # noqa: B008
    asker = TeacherAsker(teacher, images, held_out, recipe.decoder, recipe.seed)
    return train_decoder(sam, asker, folder, recipe, options)


def mask_losses(folder):
    return [float(row["masks"]) for row in rows_of(folder) if row["masks"]]


def iou_by_box(sam, teacher, images, boxes):
    """Return the mean IoU of the stock decoder's masks by the shapes' boxes, against those of the teacher's features."""
    ious = []
    for i, box in boxes:
        view = images[i].read(CPU)
        masks = []
        for model, features in ((sam, view.student), (teacher, view.teacher)):
            rows, columns = features.shape[-2:]
            sparse, dense = model.prompt_encoder(None, torch.tensor([box], dtype=torch.float), None)
            place = model.prompt_encoder.get_dense_pe()[..., :rows, :columns]
            with torch.no_grad():
                logits, _ = model.mask_decoder(features, place, sparse, dense[..., :rows, :columns], False)
            masks.append((logits[0, 0, :48, :64] > 0).numpy())
        ious.append((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    return np.mean(ious)


def test_masks_approach_the_teachers(sam, encoded, shapes, tmp_path):
    """The loss falls, boxes that were never drawn find the teacher's masks, and nothing but the mask decoder has changed."""
    student, teacher = deepcopy(sam), FrozenDecoder(sam)
    recipe = Recipe(decoder=DecoderRecipe(epochs=14, lr=3e-4, ema_decay=0.7))
    before = iou_by_box(student, sam, encoded, shapes[1])
    record = train(student, teacher, encoded, encoded[:1], tmp_path / "run", recipe)
    after = iou_by_box(student, sam, encoded, shapes[1])
    assert after > before + 0.1
    assert record["after"]["point_iou"] > record["before"]["point_iou"]
    losses = mask_losses(tmp_path / "run")
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    saved = load_file(tmp_path / "run" / "decoder.safetensors")
    for name, value in student.state_dict().items():
        if name.startswith("mask_decoder."):
            assert torch.equal(value, saved[name.removeprefix("mask_decoder.")]), name
        else:
            assert torch.equal(value, sam.state_dict()[name]), name


def test_the_result_is_a_blend_with_the_weights_before(sam, encoded, tmp_path):
    found = {}
    for blend in (1.0, 0.25):
        student = deepcopy(sam)
        recipe = Recipe(decoder=DecoderRecipe(epochs=1, lr=1e-3, ema_decay=0.0, blend=blend))
        assert train(student, FrozenDecoder(sam), encoded, encoded[:1], tmp_path / str(blend), recipe)["blend"] == blend
        found[blend] = student.mask_decoder.state_dict()
    for name, before in sam.mask_decoder.state_dict().items():
        torch.testing.assert_close(found[0.25][name], 0.75 * before + 0.25 * found[1.0][name])
    assert not torch.equal(found[1.0]["iou_token.weight"], sam.mask_decoder.state_dict()["iou_token.weight"])


@pytest.mark.release
@pytest.mark.skipif(not ALL, reason="it takes 20 s: make test-all runs it")
def test_both_halves_approach_the_teachers(sam, encoded, tmp_path):
    """An encoder whose neck was disturbed: its features come back to the teacher's, and so do the masks."""
    student = deepcopy(sam)
    generator = torch.Generator().manual_seed(0)
    for weight in student.image_encoder.neck.parameters():
        weight.data *= 1 + 0.6 * torch.randn(weight.shape, generator=generator)
    inputs = input_images([entry.image for entry in encoded], Grid(SIZE))

    def error():
        views = [entry.read(CPU) for entry in inputs]
        with torch.no_grad():
            features = [student.image_encoder.eval()(view.student)[..., :12, :16] for view in views]
        return np.mean([(f - view.teacher).square().mean() for f, view in zip(features, views, strict=True)])

    recipe = Recipe(decoder=DecoderRecipe(epochs=10, lr=1e-4, ema_decay=0.5, encoder_rate=0.3, blend=1.0))
    asker = TeacherAsker(FrozenDecoder(sam), inputs, inputs, recipe.decoder, 0)

    def masks_loss():
        with torch.no_grad():
            _, terms = image_losses(Student(TrainedDecoder(student), student.image_encoder), asker, range(6))
        return terms["masks"].item()

    before = error(), masks_loss()
    train(student, FrozenDecoder(sam), inputs, inputs[:1], tmp_path / "run", recipe)
    after = error(), masks_loss()
    assert after[0] < 0.98 * before[0]
    assert after[1] < 0.95 * before[1]
    rows = [float(row["features"]) for row in rows_of(tmp_path / "run") if row["features"]]
    assert rows[-1] < rows[0]


def test_the_features_error_by_hand():
    teacher = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]])  # deviations 1, 1, 0, 0: a variance of 0.5
    features = torch.full((1, 2, 4, 4), 2.0)  # off by 1, 1, 0, 0 in the image, the rest is padding
    assert feature_error(features, teacher).item() == pytest.approx(1.0)


def test_no_gradient_passes_the_head_for_the_iou(sam, encoded):
    """What the scores teach reaches their head alone; what the masks teach reaches all but it; neither reaches the features."""
    student = Student(TrainedDecoder(sam))
    asker = TeacherAsker(FrozenDecoder(sam), encoded, encoded, DecoderRecipe(), 0)
    sample = asker(0)
    features = sample.image.requires_grad_()
    for name in ("scores", "masks"):
        student.zero_grad()
        features.grad = None
        student(sample, 1.0, 0)[name].backward()
        moved = {key for key, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        head = {key for key in moved if "iou_prediction_head" in key}
        assert moved == head if name == "scores" else not head
        assert all(key.startswith("decoder.mask_decoder.") for key in moved)
        assert (features.grad is None) == (name == "scores")
    assert len(moved) > 50


def test_the_teacher_itself_has_nothing_to_learn(sam, encoded):
    """On the teacher's own features its decoder has no loss on masks, and scores are as far off as they are beyond 0 and 1."""
    view = encoded[0].read(CPU)
    teacher = FrozenDecoder(sam)
    single, *_ = ask(teacher, view.teacher, DecoderRecipe(), np.random.default_rng(0))
    terms = Student(TrainedDecoder(sam))(Sample(view.teacher, [single], None), 1.0, 0)
    assert terms["masks"].item() == pytest.approx(0.0, abs=1e-4)
    with torch.no_grad():
        scores = teacher(view.teacher, single.points).scores
    assert terms["scores"].item() == pytest.approx((scores - scores.clamp(0, 1)).square().mean().item(), abs=1e-5)


def test_the_scores_target_by_hand(sam, encoded):
    """IoU with the teacher's mask times the IoU that the teacher predicts, for each of the four masks of a point."""
    view = encoded[0].read(CPU)
    points = torch.tensor([[[45.0, 90.0]], [[200.0, 30.0]]])
    with torch.no_grad():
        theirs, ours = (FrozenDecoder(sam)(features, points) for features in (view.teacher, view.student))
    wanted = theirs.scores.clamp(0, 1)
    prompts = Prompts(points, None, None, theirs.logits, wanted, torch.full((2, 4), 1 / 8))
    terms = Student(TrainedDecoder(sam))(Sample(view.student, [prompts], None), 1.0, 0)
    errors = []
    for p in range(2):
        for m in range(4):
            a, b = (x.logits[p, m, :48, :64].numpy() > 0 for x in (ours, theirs))
            errors.append((ours.scores[p, m] - wanted[p, m] * (a & b).sum() / (a | b).sum()).item() ** 2)
    assert terms["scores"].item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_prompts_are_answered_by_the_teacher(sam, encoded):
    """The masks for an exact box are those of the stock decoder, and each part's weights sum up to 1."""
    view, seen = encoded[0].read(CPU), set()
    teacher = FrozenDecoder(sam)
    for seed in range(6):
        single, *others = ask(teacher, view.teacher, DecoderRecipe(points=3, instances=4), np.random.default_rng(seed))
        assert 1 <= len(single.points) <= 3
        assert single.points.shape[1:] == (1, 2)
        assert single.logits.shape == (len(single.points), 4, 48, 64)
        assert single.weights.sum().item() == pytest.approx(1.0)
        assert sum(prompts.weights.sum().item() for prompts in others) == pytest.approx(1.0)
        for prompts in others:
            seen.add((prompts.points is not None, prompts.boxes is not None))
            assert prompts.logits.shape[1:] == (1, 48, 64)
            assert (prompts.logits > 0).flatten(1).any(1).all()
            if prompts.points is not None:
                x, y = (prompts.points / 4).long().unbind(2)
                rows = torch.arange(len(x))[:, None]
                assert (prompts.logits[rows, 0, y, x] > 0).all(), "points are inside"
            if prompts.boxes is not None:
                assert (prompts.boxes >= 0).all()
                assert (prompts.boxes <= torch.tensor([256, 192, 256, 192])).all()
    assert seen == {(False, True), (True, True), (True, False)}


def test_samples_depend_on_their_number_alone(sam, encoded):
    asker = TeacherAsker(FrozenDecoder(sam), encoded, encoded, DecoderRecipe(), 0)
    torch.manual_seed(1)
    first = [asker(number) for number in range(6)]
    torch.manual_seed(2)
    for number, sample in reversed(list(enumerate(first))):
        again = asker(number)
        assert torch.equal(sample.image, again.image)
        assert sample.cells == again.cells
        for one, other in zip(sample.prompts, again.prompts, strict=True):
            assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))
    assert {sample.cells for sample in first} == {None, (12, 16)}, "with the padding, and without"


def test_instances_are_unlike():
    masks = torch.zeros(6, 20, 20, dtype=torch.bool)
    masks[0, :10, :10] = masks[1, :10, :11] = masks[2, 10:, 10:] = masks[4] = True
    masks[3, 5, 5] = masks[5, :4, 12:] = True
    scores = torch.tensor([0.8, 0.9, 0.85, 0.95, 0.99, 0.1])
    assert pick_instances(masks, scores) == [3, 1, 2], "not all of the image, not the second of two alike, not the worse half"


def test_backgrounds_are_no_instances():
    masks = torch.zeros(5, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 0:5, 0:9] = True  # in a corner
    masks[2, 8:] = True  # a floor: left, right and bottom
    masks[3, 1:9, 1:19] = True  # 72 % of the image
    masks[4] = ~masks[0]
    assert are_instances(masks).tolist() == [True, True, False, False, False]


def test_single_points_mean_instances(sam, encoded):
    """The best mask of each is one, although most of the image is background."""
    teacher, view = FrozenDecoder(sam), encoded[0].read(CPU)
    for seed in range(3):
        single, *_ = ask(teacher, view.teacher, DecoderRecipe(points=3), np.random.default_rng(seed))
        best = single.logits[torch.arange(len(single.logits)), single.scores[:, 1:].argmax(1) + 1] > 0
        assert are_instances(best).all()


def test_boxes_are_moved_a_little():
    boxes = torch.tensor([[10.0, 20.0, 110.0, 60.0]]).repeat(2000, 1)
    moved = (move_boxes(boxes, 16, np.random.default_rng(0)) - boxes).numpy()
    limit = np.array([10.0, 4.0, 10.0, 4.0]) + 2
    assert (np.abs(moved) <= limit).all()
    assert (np.abs(moved).max(0) > limit - 1).all()
    assert (moved == 0).all(1).mean() == pytest.approx(0.3, abs=0.04)


def test_points_in_masks_by_hand():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 1, 2] = masks[1, 6:, 7] = True
    points = points_in(masks, 20, 8, torch.Generator().manual_seed(0))
    assert points[0].unique(dim=0).tolist() == [[5.0, 3.0]], "a mask has four pixels for eight of the input"
    assert points[1].unique(dim=0).tolist() == [[15.0, 13.0], [15.0, 15.0]]


def test_a_correction_is_a_click_where_the_mask_is_wrong():
    target = torch.full((3, 1, 8, 8), -1.0)
    target[:, :, 2:6, 2:6] = 1.0
    answer = torch.full((3, 1, 12, 12), -1.0)
    answer[:, :, 2:6, 2:6] = 1.0
    answer[0, 0, 2, 2] = -1.0  # misses a pixel
    answer[1, 0, 7, 3] = 1.0  # has one too many
    answer[2, 0, 9, 9] = 1.0  # in the padding, which does not count
    box = torch.zeros(3, 4)
    before = Prompts(None, None, box, target, torch.ones(3, 1), torch.ones(3, 1))
    generator = torch.Generator().manual_seed(0)
    after = correct(before, answer, 16, generator)
    assert after.points[:2, 0].tolist() == [[10.0, 10.0], [14.0, 30.0]]
    assert after.labels.tolist() == [[1.0], [0.0], [1.0]]
    x, y = (after.points[2, 0] / 4).long().tolist()
    assert target[2, 0, y, x] > 0, "it confirms a mask that is right"
    again = correct(after, answer, 16, generator)
    assert again.points.shape == (3, 2, 2)
    assert again.labels[:, 1].tolist() == [1.0, 0.0, 1.0]
    assert again.boxes is box


def test_the_head_learns_faster(sam):
    student = Student(TrainedDecoder(sam))
    groups = make_optimizer(student, DecoderRecipe(weight_decay=0.1)).param_groups
    rates = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in student.named_parameters():
        if name.startswith("decoder.prompt_encoder."):
            assert id(parameter) not in rates
            continue
        scale, decay = rates[id(parameter)]
        assert scale == (3.0 if "iou_prediction_head" in name else 1.0)
        assert (decay == 0) == (parameter.ndim < 2 or name.endswith(("iou_token.weight", "mask_tokens.weight"))), name


def test_features_are_kept_once(shapes, tmp_path, monkeypatch):
    """A file is named after the image and the encoder's weights, and holds the features of the padded whole."""
    cached, _ = cache_features(find_images(shapes[0]), PlainTeacher(), tmp_path, Grid(128))
    torch.manual_seed(0)
    encoder = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=128).image_encoder
    first = encode_images(encoder, cached, tmp_path, Grid(128))
    for entry in first:
        with torch.no_grad():
            expected = encoder(as_input(load_file(entry.image.image)["image"], 128))
        torch.testing.assert_close(entry.read(CPU).student, expected, rtol=2e-3, atol=2e-3)
        assert entry.read(CPU).teacher.shape == (1, 256, 6, 8)
    first[1].features.write_bytes(b"damaged")
    calls = []
    encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    assert encode_images(encoder, cached, tmp_path, Grid(128)) == first
    assert len(calls) == 1
    encoder.neck.proj.weight.data += 0.1
    assert not {entry.features for entry in encode_images(encoder, cached, tmp_path, Grid(128))} & {e.features for e in first}


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from timm.utils import ModelEmaV3
from groupmix_sam.distill import CachedImage, FrozenDecoder, RunOptions
from groupmix_sam.distill.decoder_stage import EncodedImage, InputImage
from tests.distill.test_decoder_stage import JOINT, SHORT, tiny, train

files, folder, last, accumulate, joint = json.loads(sys.argv[1])
update = ModelEmaV3.update


def die(average, student, step):
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    update(average, student, step)


ModelEmaV3.update = die
cached = [CachedImage(Path(image), Path(maps)) for image, maps, _ in files]
if joint:
    images = [InputImage(image, 128) for image in cached]
else:
    images = [EncodedImage(image, Path(features)) for image, (_, _, features) in zip(cached, files)]
options = RunOptions(resume=True, save_minutes=1e-9, accumulate=accumulate)
torch.set_num_threads(1)
train(tiny(1), FrozenDecoder(tiny(0)), images[1:], images[:1], Path(folder), JOINT if joint else SHORT, options)
"""
SHORT = Recipe(decoder=DecoderRecipe(epochs=8, points=2, instances=2, ema_decay=0.5))
JOINT = Recipe(decoder=DecoderRecipe(epochs=6, points=2, instances=2, ema_decay=0.5, encoder_rate=1.0))


def tiny(seed):
    torch.manual_seed(seed)
    return build_sam_groupmix(None, encoder="gmf_sam_test", image_size=128)


@pytest.fixture(scope="module")
def small(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    cached, _ = cache_features(find_images(shapes[0]), PlainTeacher(), folder, Grid(128))
    return encode_images(tiny(1).image_encoder, cached, folder, Grid(128))


def arguments(images, folder, last=0, accumulate=1, joint=False):
    """Return what SCRIPT takes; a stage that has a last step is killed in it."""
    files = [[str(entry.image.image), str(entry.image.maps), str(entry.features)] for entry in images]
    return json.dumps([files, str(folder), last, accumulate, joint])


def test_a_stage_that_is_killed_goes_on_to_the_same_weights(small, tmp_path):
    folder = tmp_path / "run"
    assert start(SCRIPT, arguments(small, folder, last=5)).wait().returncode == -signal.SIGKILL
    assert step_of(folder) == 4
    python(SCRIPT, arguments(small, folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tiny(1), FrozenDecoder(tiny(0)), small[1:], small[:1], tmp_path / "whole", SHORT)
    torch.set_num_threads(threads)
    found, expected = (load_file(tmp_path / name / "decoder.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(InvalidInputError, match="has a run in it: go on with --resume"):
        train(tiny(1), FrozenDecoder(tiny(0)), small[1:], small[:1], folder, SHORT)
    with pytest.raises(InvalidInputError, match="start: "):
        train(tiny(2), FrozenDecoder(tiny(0)), small[1:], small[:1], folder, SHORT, RunOptions(resume=True))


@pytest.mark.release
@pytest.mark.skipif(not ALL, reason="it takes 10 s: make test-all runs it")
def test_both_halves_that_are_killed_go_on_to_the_same_weights(small, tmp_path):
    folder = tmp_path / "run"
    assert start(SCRIPT, arguments(small, folder, last=4, joint=True)).wait().returncode == -signal.SIGKILL
    assert step_of(folder) == 3
    python(SCRIPT, arguments(small, folder, joint=True))
    inputs = input_images([entry.image for entry in small], Grid(128))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    student = tiny(1)
    train(student, FrozenDecoder(tiny(0)), inputs[1:], inputs[:1], tmp_path / "whole", JOINT)
    torch.set_num_threads(threads)
    for name, part in (("decoder", student.mask_decoder), ("encoder", student.image_encoder)):
        found = load_file(folder / f"{name}.safetensors")
        assert all(torch.equal(found[key], value) for key, value in part.state_dict().items()), name
    assert not torch.equal(student.image_encoder.neck.proj.weight, tiny(1).image_encoder.neck.proj.weight)
    assert [row for row in rows_of(folder) if row["features"]] != []


def test_two_processes_learn_what_one_learns(small, tmp_path):
    """Each takes one of the two images of a step; against one process that takes them one after the other."""
    python(SCRIPT, arguments(small, tmp_path / "one", accumulate=2))
    together(SCRIPT, arguments(small, tmp_path / "two"))
    one, two = (mask_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 8
    assert one == pytest.approx(two, rel=1e-3)


def test_losses_are_means_over_images(sam, encoded):
    asker = TeacherAsker(FrozenDecoder(sam), encoded, encoded, DecoderRecipe(points=1, instances=1), 0)
    student = Student(TrainedDecoder(sam))
    with torch.no_grad():
        both, terms = image_losses(student, asker, [0, 1])
        each = [image_losses(student, asker, [number])[0] for number in (0, 1)]
    assert both.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-4)
    assert both.item() == pytest.approx((5 * terms["masks"] + terms["scores"]).item(), rel=1e-5)


def test_nothing_to_train_on(small, tmp_path):
    with pytest.raises(InvalidInputError, match="no image to train on"):
        train(tiny(1), FrozenDecoder(tiny(0)), [], small, tmp_path, SHORT)


@pytest.mark.parametrize(("minutes", "expected"), [(10.0, 1.0), (0.7, 2.5 / 3), (1e-4, 0.5)])
def test_the_minutes_are_those_of_the_mean_step(monkeypatch, minutes, expected):
    """Of a slow first step and then 0.5 and 1.5 seconds by turns: of 20 steps, or of a twentieth of the minutes."""
    clock, took = [0.0], iter([9.0, *[0.5, 1.5] * 10])
    decoder = TrainedDecoder(build_sam_groupmix(None, encoder="gmf_sam_test", image_size=128))
    weight = decoder.mask_decoder.mask_tokens.weight

    def losses(model, asker, numbers):
        clock[0] += next(took)
        return model.decoder.mask_decoder.mask_tokens.weight.sum(), {}

    monkeypatch.setattr("groupmix_sam.distill.decoder_stage.image_losses", losses)
    monkeypatch.setattr("groupmix_sam.distill.decoder_stage.time.monotonic", lambda: clock[0])
    before = weight.detach().clone()
    how = DecoderRecipe(minutes=minutes)
    assert step_seconds(Student(decoder), None, how, 1, Accelerator(cpu=True), RunOptions()) == pytest.approx(expected)
    assert torch.equal(weight, before), "the steps are tried on a copy"
