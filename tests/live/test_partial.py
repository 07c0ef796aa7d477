"""Encoding windows: what is encoded, what is kept, and how it is found out when that is not good enough."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from groupmix_sam.errors import InvalidInputError
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.model import OUTSIDE, torch_model
from groupmix_sam.live import Tracker
from groupmix_sam.live.partial import PartialPredictor

from .fake import RED, scene

SIZE = (192, 256)


def frame(*things, seed=0):
    return scene(*things, size=SIZE, seed=seed)


@pytest.fixture
def partial(sam):
    return PartialPredictor(Predictor(sam))


def test_noise_is_not_encoded(partial):
    """Of frames that differ by noise of 20 levels the first is encoded."""
    partial.set_image(frame())
    first = partial.get_image_embedding()
    assert partial.share == 1
    for seed in range(1, 10):
        partial.set_image(frame(seed=seed))
        assert partial.share == 0
        np.testing.assert_array_equal(partial.get_image_embedding(), first)


def test_a_window_around_what_changed(partial, sam):
    """Its features are those of the window encoded alone, and all others stay as they were."""
    plain = Predictor(sam)
    partial.set_image(frame())
    before = partial.get_image_embedding().copy()
    changed = frame((RED, (96, 16, 112, 32)))
    partial.set_image(changed)
    after = partial.get_image_embedding()
    # 64 pixels around, within the frame, and sides that are multiples of 64.
    rows, columns = slice(0, 128), slice(32, 224)
    assert partial.share == pytest.approx(128 * 192 / 256**2)
    pixels = plain.preprocess(changed)
    expected = plain.encode(np.ascontiguousarray(pixels[None, :, rows, columns]))
    np.testing.assert_allclose(after[:, :, :8, 2:14], expected, atol=1e-5)
    outside = np.ones(after.shape[2:], bool)
    outside[:8, 2:14] = False
    np.testing.assert_array_equal(after[:, :, outside], before[:, :, outside])
    assert not np.allclose(after, before)
    partial.set_image(changed)
    assert partial.share == 0, "what was encoded is known"


def test_slow_light_cannot_creep_away(partial):
    """Half a level a frame is below what is told from noise in one frame, and is encoded once it adds up."""
    dark = frame().astype(np.float32)
    shares = []
    for i in range(30):
        partial.set_image((dark + 0.5 * i).astype(np.uint8))
        shares.append(partial.share)
    assert shares[0] == 1
    assert shares[1:4] == [0, 0, 0]
    assert 1 <= shares[1:].count(0.75) <= 8
    assert max(shares[1:]) == 0.75, "the whole frame without the padding, as it changes everywhere"


@pytest.mark.parametrize("event", ["a light", "a bumped camera", "another size"])
def test_what_changes_everywhere_is_encoded(partial, event):
    textured = np.random.default_rng(1).integers(0, 255, (24, 32, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    partial.set_image(textured)
    if event == "a light":
        textured = np.clip(textured.astype(int) + 60, 0, 255).astype(np.uint8)
    elif event == "a bumped camera":
        textured = np.roll(textured, (3, 5), (0, 1))
    else:
        textured = textured[:160]
    partial.set_image(textured)
    assert partial.share == (1 if event == "another size" else 0.75), "without the padding, if that was encoded before"


def test_a_refresh_is_due(partial, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("groupmix_sam.live.partial.time", SimpleNamespace(monotonic=lambda: now[0]))
    partial.set_image(frame())
    now[0] = 11
    partial.set_image(frame(seed=1))
    assert partial.share == 0, "nothing was pasted since the last full encoding"
    partial.set_image(frame((RED, (96, 16, 112, 32)), seed=2))
    assert 0 < partial.share < 1
    partial.set_image(frame((RED, (96, 16, 112, 32)), seed=3))
    assert partial.share == 1
    partial.set_image(frame((RED, (104, 16, 120, 32)), seed=4))
    assert 0 < partial.share < 1


@pytest.fixture
def audits(monkeypatch):
    """Audits after five windows, and windows up to the whole frame."""
    monkeypatch.setattr("groupmix_sam.live.partial.AUDIT_EVERY", 5)
    monkeypatch.setattr("groupmix_sam.live.partial.WORTH", 1.0)


def test_an_audit_that_fails_widens_margins_and_then_gives_up(sam, audits):
    partial = PartialPredictor(Predictor(sam), min_iou=1.1, refresh=1e9)
    partial.set_image(frame())
    partial.predict_prompts(boxes=np.array([[90, 10, 130, 60]]), multimask_output=False)
    said = []
    for i in range(20):
        with pytest.warns(UserWarning, match="encod") if _audit_is_next(partial) else nullcontext():
            partial.set_image(frame((RED, (96 + 8 * (i % 2), 16, 112 + 8 * (i % 2), 32))))
        said.append((partial.margin, partial.always_full))
    assert list(dict.fromkeys(said)) == [(64, False), (128, False), (192, False), (192, True)]
    assert partial.share == 1
    assert len(partial.audits) == 3
    assert all(0 <= iou <= 1 for iou in partial.audits)


def test_an_audit_that_passes_says_nothing(sam, audits):
    partial = PartialPredictor(Predictor(sam), min_iou=0.0, refresh=1e9)
    partial.set_image(frame())
    partial.predict_prompts(boxes=np.array([[90, 10, 130, 60]]), multimask_output=False)
    for i in range(5):
        partial.set_image(frame((RED, (96 + 8 * (i % 2), 16, 112 + 8 * (i % 2), 32))))
    assert partial.share == 1
    assert (len(partial.audits), partial.margin, partial.always_full) == (1, 64, False)


def test_nothing_is_done_while_nothing_moves(partial, monkeypatch):
    """Noise alone: the tracker gives the same objects without asking the decoder."""
    tracker = Tracker(partial)
    mask = np.zeros(SIZE, bool)
    mask[16:48, 96:128] = True
    tracker.start(frame((RED, (96, 16, 128, 48))), masks=[mask])
    (before,) = tracker.update(frame((RED, (98, 16, 130, 48)), seed=1))
    asked = []
    ask = partial.predict_logits
    monkeypatch.setattr(partial, "predict_logits", lambda *args, **kwargs: asked.append(1) or ask(*args, **kwargs))
    for seed in range(2, 6):
        (item,) = tracker.update(frame((RED, (98, 16, 130, 48)), seed=seed))
        assert partial.share == 0
        assert item == before
    assert not asked
    # A covered camera hides what is there, and it is searched for although nothing moved when it is uncovered.
    assert tracker.update(np.zeros((*SIZE, 3), np.uint8))[0].state == "lost"
    tracker.update(frame((RED, (98, 16, 130, 48)), seed=6))
    assert partial.share == 0
    assert asked


def test_it_takes_a_predictors_place_in_a_tracker(partial):
    tracker = Tracker(partial)
    mask = np.zeros(SIZE, bool)
    mask[16:32, 96:112] = True
    tracker.start(frame((RED, (96, 16, 112, 32))), masks=[mask])
    (item,) = tracker.update(frame((RED, (98, 16, 114, 32)), seed=1))
    assert item.id == 0
    assert 0 < partial.share < 1


def test_only_around_what_is_followed(sam):
    partial = PartialPredictor(Predictor(sam), follow=True)
    partial.set_image(frame())
    partial.watch(np.array([[160, 100, 190, 130]]))
    partial.margin = 16
    far, near = (RED, (0, 0, 16, 16)), (RED, (168, 108, 176, 116))
    partial.set_image(frame(far, seed=1))
    assert partial.share == 0
    partial.set_image(frame(far, near, seed=2))
    assert partial.share == 64 * 64 / 256**2
    partial.watch(None)
    partial.set_image(frame(far, near, seed=3))
    assert partial.share == 64 * 64 / 256**2, "what was left out is encoded when an object may be anywhere"


def test_two_windows(sam):
    """One for each object that is followed, where one around both would be larger."""
    size = (256, 256)
    partial = PartialPredictor(Predictor(sam), follow=True)
    partial.set_image(scene(size=size))
    partial.margin = 16
    partial.watch(np.array([[8, 8, 16, 16], [200, 200, 208, 208]]))
    partial.set_image(scene((RED, (8, 8, 16, 16)), (RED, (200, 200, 208, 208)), size=size, seed=1))
    assert partial.share == 2 * 64 * 64 / 256**2
    partial.watch(np.array([[8, 8, 16, 16], [24, 8, 32, 16]]))
    partial.set_image(scene((RED, (24, 8, 32, 16)), (RED, (200, 200, 208, 208)), size=size, seed=2))
    assert partial.share == 64 * 64 / 256**2, "two that are one"


def test_decoding_around_what_is_followed(sam):
    """The decoder sees 8 cells around the box, 16 pixels each, and nothing is drawn outside; else it sees all."""
    plain, partial = Predictor(sam), PartialPredictor(Predictor(sam), follow=True)
    shown = scene((RED, (8, 8, 24, 24)), size=(256, 256))
    box = np.array([[8, 8, 24, 24]])
    for predictor in (plain, partial):
        predictor.set_image(shown)
    expected = plain.predict_prompts(boxes=box)
    for a, b in zip(partial.predict_prompts(boxes=box), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    partial.watch(box)
    masks, _, logits = partial.predict_prompts(boxes=box)
    # The box ends in cell 1, so cells 0 to 9 are seen.
    assert (logits[..., 40:, :] == OUTSIDE).all()
    assert (logits[..., :, 40:] == OUTSIDE).all()
    assert (logits[..., :40, :40] != OUTSIDE).all()
    assert masks[..., 164:, :].sum() == 0
    assert np.abs(logits[..., :40, :40] - expected[2][..., :40, :40]).mean() < expected[2].std()


def test_what_decodes_parts_is_loaded_at_the_start(sam):
    """Exports load it when it is first asked for, which would hold up a stream."""
    model, asked = torch_model(sam), []
    for follow in (False, True):
        PartialPredictor(Predictor(replace(model, crop=lambda *window: asked.append(window))), follow=follow)
        assert bool(asked) == follow


def test_decoding_in_steps(sam):
    """Of a runtime that is compiled for each size: 10 cells are needed, and 12 are decoded."""
    partial = PartialPredictor(Predictor(replace(torch_model(sam), crop_step=12)), follow=True)
    partial.set_image(scene((RED, (228, 228, 248, 248)), size=(256, 256)))
    box = np.array([[228, 228, 248, 248]])
    partial.watch(box)
    _, logits = partial.predict_logits(boxes=box)
    assert ((logits != OUTSIDE).any((0, 1, 2)) == (np.arange(64) >= 16)).all()
    assert ((logits != OUTSIDE).any((0, 1, 3)) == (np.arange(64) >= 16)).all()


def test_the_tracker_says_where_objects_are_expected(sam, monkeypatch):
    partial, told = PartialPredictor(Predictor(sam), follow=True), []
    monkeypatch.setattr(partial, "watch", told.append)
    tracker = Tracker(partial)
    mask = np.zeros(SIZE, bool)
    mask[16:48, 96:128] = True
    tracker.start(frame((RED, (96, 16, 128, 48))), masks=[mask])
    tracker.update(frame((RED, (98, 16, 130, 48)), seed=1))
    tracker.update(np.zeros((*SIZE, 3), np.uint8))
    tracker.update(frame((RED, (98, 16, 130, 48)), seed=2))
    first, second, lost = told
    assert first is None
    np.testing.assert_array_equal(second, [[96, 16, 128, 48]])
    assert lost is None


def test_an_exported_encoder_is_refused():
    with pytest.raises(InvalidInputError, match="takes one size"):
        PartialPredictor(SimpleNamespace(model=SimpleNamespace(encoder=None)))


def _audit_is_next(partial):
    return partial._unchecked == 4 and not partial.always_full
