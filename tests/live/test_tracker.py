"""The tracker, on drawn videos with a predictor whose masks are known."""

import tracemalloc

import numpy as np
import pytest

from groupmix_sam.errors import InvalidInputError
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.mask_resize import neighbours, resize_blocks
from groupmix_sam.live import Tracker
from groupmix_sam.live.tracker import _cover, _enlarge, _Grid, _grow, _shift
from groupmix_sam.masks import mask_iou, tight_box

from .fake import BLUE, GREEN, RED, ColourPredictor, rectangle, scene


def at(x, y=40, side=30):
    return (x, y, x + side, y + side)


@pytest.fixture
def tracker():
    return Tracker(ColourPredictor())


def test_follows_what_moves(tracker):
    assert tracker.start(scene((RED, at(20))), boxes=[at(20)]) == [0]
    for i in range(1, 26):
        box = at(20 + 3 * i, 40 + i)
        (item,) = tracker.update(scene((RED, box), seed=i))
        assert (item.id, item.state) == (0, "tracked")
        assert mask_iou(item.mask, rectangle(box)) > 0.85
        np.testing.assert_array_equal(item.box, tight_box(item.mask))
        assert 0.5 < item.score <= 1


@pytest.mark.parametrize(
    "prompts",
    [
        {"boxes": [at(20)]},
        {"points": [[35, 55]]},
        {"points": [[[35, 55], [5, 5]]], "labels": [[1, 0]]},
        {"masks": [rectangle(at(20))]},
    ],
    ids=["box", "point", "points", "mask"],
)
def test_every_kind_of_prompt(tracker, prompts):
    tracker.start(scene((RED, at(20))), **prompts)
    (item,) = tracker.update(scene((RED, at(23)), seed=1))
    assert mask_iou(item.mask, rectangle(at(23))) > 0.85


def test_a_hidden_object_is_lost_and_found_again(tracker):
    """It moves behind a bar that has been there all the time, and comes out on the other side."""
    bar = (BLUE, (60, 0, 104, 120))
    place = [20 + 3 * i for i in range(40)]
    tracker.start(scene((RED, at(place[0])), bar), boxes=[at(place[0])])
    states = []
    for i, x in enumerate(place[1:], 1):
        (item,) = tracker.update(scene((RED, at(x)), bar, seed=i))
        states.append(item.state)
        truth = rectangle(at(x)) & ~rectangle(bar[1])
        assert (item.mask is None) == (item.box is None) == (item.state == "lost")
        if item.mask is not None:
            assert mask_iou(item.mask, truth) > 0.5
    hidden = [i for i, x in enumerate(place[1:]) if x >= 60 and x + 30 <= 104]
    back = next(i for i, x in enumerate(place[1:]) if x + 30 > 104)
    assert "lost" not in states[: hidden[0] - 4]
    assert "lost" in states[hidden[0] - 4 : hidden[0] + 6], "within 6 frames"
    found = states.index("found")
    assert back <= found < back + 6, "within 3 frames of when a third of it is seen, 3 frames after its first edge"
    assert set(states[found + 1 :]) == {"tracked"}


def test_an_object_that_leaves_is_lost_and_nothing_else_is_taken_for_it(tracker):
    tracker.start(scene((RED, at(20)), (GREEN, at(90))), boxes=[at(20)])
    for i in range(1, 30):
        (item,) = tracker.update(scene((RED, at(20 - 4 * i)), (GREEN, at(90)), seed=i))
        if 20 - 4 * i + 30 <= 0:
            assert item.state == "lost"


def test_objects_that_cross_keep_their_ids(tracker):
    """One passes in front of the other, which is lost for a while or seen in part, and never taken for the first."""
    tracker.start(scene((GREEN, at(110)), (RED, at(10))), boxes=[at(10), at(110)])
    for i in range(1, 26):
        red, green = at(10 + 4 * i), at(110 - 4 * i)
        items = tracker.update(scene((GREEN, green), (RED, red), seed=i))
        assert [item.id for item in items] == [0, 1]
        first, second = (item.mask if item.mask is not None else np.zeros((120, 160), bool) for item in items)
        assert not (first & second).any()
        assert mask_iou(first, rectangle(red)) > 0.8
        seen = rectangle(green) & ~rectangle(red)
        assert (second & ~seen).sum() < 0.25 * 900
    assert [item.state for item in items] == ["tracked", "tracked"]
    assert mask_iou(second, rectangle(green)) > 0.8


def test_a_part_of_an_object_is_followed_beside_it(tracker):
    """A red thing with a green part: the whole is told by its mask, and the part does not take its place from it."""

    def frame(i):
        return scene((RED, (20 + i, 30, 80 + i, 90)), (GREEN, (40 + i, 50, 60 + i, 70)), seed=i)

    whole, part = rectangle((20, 30, 80, 90)), rectangle((40, 50, 60, 70))
    tracker.start(frame(0), masks=[whole, part])
    for i in range(1, 8):
        items = tracker.update(frame(2 * i))
    assert mask_iou(items[0].mask, rectangle((34, 30, 94, 90))) > 0.8
    assert mask_iou(items[1].mask, rectangle((54, 50, 74, 70))) > 0.7


def test_objects_come_and_go(tracker):
    frame = scene((RED, at(20)), (GREEN, at(90)))
    tracker.start(frame, boxes=[at(20)])
    tracker.update(scene((RED, at(22)), (GREEN, at(90)), seed=1))
    assert tracker.add(boxes=[at(90)]) == [1]
    items = tracker.update(scene((RED, at(24)), (GREEN, at(92)), seed=2))
    assert [item.id for item in items] == [0, 1]
    assert mask_iou(items[1].mask, rectangle(at(92))) > 0.85
    tracker.drop(0)
    assert [item.id for item in tracker.update(scene((GREEN, at(94)), seed=3))] == [1]
    assert tracker.add(points=[[109, 55]]) == [2], "ids are not used again"
    with pytest.raises(InvalidInputError, match=r"no object 0: those that are followed are \[1, 2\]"):
        tracker.drop(0)
    assert tracker.start(frame, boxes=[at(90)]) == [3]


def test_a_camera_that_freezes(tracker):
    """The same frame gives the same objects, and no work."""
    tracker.start(scene((RED, at(20))), boxes=[at(20)])
    frame = scene((RED, at(23)), seed=1)
    (first,) = tracker.update(frame)
    encoded = tracker._predictor.encoded
    for _ in range(5):
        (item,) = tracker.update(frame.copy())
        assert item == first
    assert tracker._predictor.encoded == encoded
    (item,) = tracker.update(scene((RED, at(26)), seed=2))
    assert item.state == "tracked"


def test_a_camera_that_has_one_buffer(tracker):
    """Each frame is written over the one before, and is not taken for the same."""
    buffer = scene((RED, at(20)))
    tracker.start(buffer, boxes=[at(20)])
    for i in range(1, 4):
        buffer[:] = scene((RED, at(20 + 3 * i)), seed=i)
        (item,) = tracker.update(buffer)
    assert mask_iou(item.mask, rectangle(at(29))) > 0.85


def test_a_camera_that_goes_black(tracker):
    tracker.start(scene((RED, at(20))), boxes=[at(20)])
    frame = scene((RED, at(23)), seed=1)
    tracker.update(frame)
    black = np.full((120, 160, 3), 3, np.uint8)
    for _ in range(3):
        (item,) = tracker.update(black)
        assert (item.state, item.mask, item.box, item.score) == ("lost", None, None, 0.0)
    (item,) = tracker.update(frame)
    assert item.state == "found"
    assert mask_iou(item.mask, rectangle(at(23))) > 0.85


def test_a_corrupt_frame(tracker):
    """Nothing but noise."""
    tracker.start(scene((RED, at(20))), boxes=[at(20)])
    tracker.update(scene((RED, at(23)), seed=1))
    broken = np.random.default_rng(2).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    assert tracker.update(broken)[0].state == "lost"
    (item,) = tracker.update(scene((RED, at(29)), seed=3))
    assert item.state == "found"
    assert mask_iou(item.mask, rectangle(at(29))) > 0.85


def test_frames_that_change_their_size(tracker):
    """Of the same shape the object goes on; of another it is found again."""
    tracker.start(scene((RED, at(20))), boxes=[at(20)])
    double = scene((RED, (46, 80, 106, 140)), size=(240, 320), seed=1)
    (item,) = tracker.update(double)
    assert item.state == "tracked"
    assert mask_iou(item.mask, rectangle((46, 80, 106, 140), (240, 320))) > 0.85
    (item,) = tracker.update(scene((RED, at(20)), size=(160, 160), seed=2))
    assert item.state == "found"
    assert mask_iou(item.mask, rectangle(at(20), (160, 160))) > 0.8


@pytest.mark.parametrize("kind", ["gray", "16 bit"])
def test_gray_and_16_bit_cameras(tracker, kind):
    def as_camera(frame):
        gray = frame[:, :, 0]
        return gray if kind == "gray" else gray.astype(np.uint16) * 257

    tracker.start(as_camera(scene(((220,) * 3, at(20)))), boxes=[at(20)])
    (item,) = tracker.update(as_camera(scene(((220,) * 3, at(23)), seed=1)))
    assert mask_iou(item.mask, rectangle(at(23))) > 0.85


def test_what_suddenly_grows_is_refused(tracker):
    """The whole frame turns red: that is not the object any more."""
    tracker.start(scene((RED, at(20))), boxes=[at(20)])
    tracker.update(scene((RED, at(22)), seed=1))
    (item,) = tracker.update(scene((RED, (0, 0, 159, 119)), seed=2))
    assert item.state == "lost"


def test_a_thing_smaller_than_a_cell(tracker):
    """It is followed or lost, as it is seen, and nothing breaks."""
    tracker.start(scene((RED, (42, 42, 45, 45))), masks=[rectangle((42, 42, 45, 45))])
    for i in range(6):
        (item,) = tracker.update(scene((RED, (42 + i, 42, 45 + i, 45)), seed=i + 1))
        assert item.mask is None or item.mask[36:52, 36:60].sum() == item.mask.sum()


def test_bad_input(tracker):
    frame = scene((RED, at(20)))
    for call in (lambda: tracker.update(frame), lambda: tracker.add(boxes=[at(20)])):
        with pytest.raises(InvalidInputError, match="no frame yet"):
            call()
    with pytest.raises(InvalidInputError, match="nothing to follow"):
        tracker.start(frame)
    with pytest.raises(InvalidInputError, match="prompt 1 has no object under it"):
        tracker.start(frame, masks=[rectangle(at(20)), rectangle((0, 0, 0, 0))])
    with pytest.raises(InvalidInputError, match=r"a mask is bool \(5, 5\)"):
        tracker.start(frame, masks=[np.ones((5, 5), bool)])
    with pytest.raises(InvalidInputError, match="leave out boxes"):
        tracker.start(frame, masks=[rectangle(at(20))], boxes=[at(20)])
    with pytest.raises(InvalidInputError, match="float"):
        tracker.start(frame.astype(float), boxes=[at(20)])


def test_a_click_without_an_object(tracker, monkeypatch):
    empty = np.zeros((1, 3, 120, 160), bool), np.ones((1, 3), np.float32), np.full((1, 3, 128, 128), -8, np.float32)
    monkeypatch.setattr(tracker._predictor, "predict_prompts", lambda *prompts, **options: empty)
    with pytest.raises(InvalidInputError, match="prompt 0 has no object under it: put the point inside"):
        tracker.start(scene(), points=[[5, 5]])


def test_nothing_grows(tracker):
    tracker.start(scene((RED, at(20))), boxes=[at(20)])

    def peak(frames):
        tracemalloc.reset_peak()
        for i in frames:
            tracker.update(scene((RED, at(20 + i % 7)), seed=i % 7))
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        peak(range(20))
        assert peak(range(10)) == pytest.approx(peak(range(50)), rel=0.05)
    finally:
        tracemalloc.stop()


def test_a_real_predictor(sam):
    """Shapes and types, by an untrained model."""
    tracker = Tracker(Predictor(sam))
    frame = scene((RED, at(20)))
    tracker.start(frame, masks=[rectangle(at(20))])
    for prompts in ({"boxes": [at(170)]}, {"points": [[175, 55]]}):
        with pytest.raises(InvalidInputError, match="outside"):
            tracker.add(**prompts)
    (item,) = tracker.update(scene((RED, at(22)), seed=1))
    assert item.mask is None or (item.mask.shape, item.mask.dtype) == ((120, 160), np.dtype(bool))


def test_cells_by_brute_force():
    mask = np.random.default_rng(0).random((50, 90)) > 0.5
    grid = _Grid(rows=18, columns=32, side=32, cell=90 / 32)
    cover = _cover(mask, grid)
    starts = [int(i * grid.cell) for i in range(33)]
    for row in range(18):
        for column in range(32):
            part = mask[starts[row] : starts[row + 1], starts[column] : starts[column + 1]]
            assert cover[row, column] == pytest.approx(part.mean())


def test_a_mask_is_resized_as_a_whole_frame_is(tracker):
    """Only what is next to the object is looked at; the mask is the same."""
    tracker.start(scene((RED, at(20))), boxes=[at(20)])
    generator = np.random.default_rng(0)
    for low, high in ((0.2, 0.9), (0.0, 0.1), (0.95, 1.0)):
        logits = np.full((96, 128), -4, np.float32)
        window = tuple(slice(int(low * n), int(np.ceil(high * n))) for n in logits.shape)
        logits[window] += generator.uniform(0, 8, logits[window].shape).astype(np.float32)
        extents = [4 * n / tracker._grid.cell for n in (120, 160)]
        sides = [neighbours(n, s, e) for n, s, e in zip((120, 160), logits.shape, extents, strict=True)]
        whole = np.concatenate([part for _, part in resize_blocks(logits, *sides)]) > 0
        assert whole.any()
        np.testing.assert_array_equal(tracker._enlarge_to_frame(logits), whole)


def test_helpers_by_hand():
    cells = np.zeros((3, 4), np.float32)
    cells[1, 1] = 1
    moved = _shift(cells, np.array([1.2, 1.6]))
    assert np.argwhere(moved).tolist() == [[2, 3]]
    assert not _shift(cells, np.array([-2.0, 0])).any()
    allowed = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]], bool)
    seeds = np.zeros((3, 4), bool)
    seeds[0, 0] = True
    assert np.argwhere(_grow(seeds, allowed)).tolist() == [[0, 0], [0, 1]]
    ramp = np.arange(6, dtype=np.float32)[None].repeat(5, 0)
    large = _enlarge(ramp)
    assert large.shape == (20, 24)
    np.testing.assert_allclose(large[7, 2:-2], (np.arange(2, 22) + 0.5) / 4 - 0.5, atol=1e-5)
