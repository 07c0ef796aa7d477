"""J, F and the followers, against brute force and drawn videos."""

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from groupmix_sam.cli import app
from groupmix_sam.errors import InvalidInputError, UnknownNameError
from groupmix_sam.evaluate.video import VideoDataset, contour_accuracy, evaluate_video, video_table
from groupmix_sam.masks import mask_iou

from ..live.fake import BLUE, GREEN, RED, ColourPredictor, rectangle, scene


def f_by_brute_force(mask, truth):
    """Every contour pixel of one looks for one of the other within the distance, pair by pair."""
    height, width = mask.shape

    def contour(m):
        out = []
        for y in range(height):
            for x in range(width):
                right, below = min(x + 1, width - 1), min(y + 1, height - 1)
                if m[y, x] != m[y, right] or m[y, x] != m[below, x] or m[y, x] != m[below, right]:
                    out.append((y, x))
        return out

    reach = np.ceil(0.008 * np.sqrt(height**2 + width**2))
    found, true = contour(mask), contour(truth)
    if not found and not true:
        return 1.0
    if not found or not true:
        return 0.0

    def share(some, others):
        return np.mean([min((y - v) ** 2 + (x - u) ** 2 for v, u in others) <= reach**2 for y, x in some])

    precision, recall = share(found, true), share(true, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("size", [(9, 11), (20, 30), (90, 100)])
def test_j_and_f_by_brute_force(size):
    """On tiny masks, also empty and full ones and such as touch the border; the distance is 1 pixel, or 2 of the largest."""
    rng = np.random.default_rng(0)
    masks = [np.zeros(size, bool), np.ones(size, bool)]
    for _ in range(1 if size[0] > 50 else 4):
        y, x = (int(rng.integers(0, side - 2)) for side in size)
        mask = np.zeros(size, bool)
        mask[y : y + 1 + int(rng.integers(1, size[0])), x : x + 1 + int(rng.integers(1, size[1]))] = True
        masks.append(mask ^ (rng.random(size) > 0.98))
    for mask in masks:
        for truth in masks:
            assert contour_accuracy(mask, truth) == pytest.approx(f_by_brute_force(mask, truth))
            pixels, true = ({(y, x) for y, x in np.argwhere(m).tolist()} for m in (mask, truth))
            assert mask_iou(mask, truth) == pytest.approx(len(pixels & true) / len(pixels | true) if pixels | true else 1)


def test_f_by_hand():
    """Two squares a pixel apart match in all of 1000 x 1000 pixels, whose distance is 12, and in part 30 pixels apart."""

    def square(x):
        return rectangle((x, 100, x + 300, 400), (1000, 1000))

    assert contour_accuracy(square(101), square(100)) == 1
    # Of 1200 pixels of each contour the two sides lie 30 away, but for their ends, and 270 of each other side have their like.
    assert contour_accuracy(square(130), square(100)) == pytest.approx(2 * (270 + 24) / 1200, abs=0.03)


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    """One sequence of one object as DAVIS 2016 has it, 255, and one of two as DAVIS 2017 has them."""
    root = tmp_path_factory.mktemp("davis")
    for name in ("one", "two"):
        for part in ("JPEGImages", "Annotations"):
            (root / part / "480p" / name).mkdir(parents=True)
        for i in range(6):
            red, green = (20 + 3 * i, 40, 50 + 3 * i, 70), (100 - 2 * i, 20, 130 - 2 * i, 60)
            things = [(RED, red), (GREEN, green)][: 1 if name == "one" else 2]
            Image.fromarray(scene(*things, seed=i)).save(root / "JPEGImages/480p" / name / f"{i:05}.jpg", quality=95)
            if name == "one":
                label = Image.fromarray(rectangle(red).astype(np.uint8) * 255)
            else:
                values = (rectangle(red) + 2 * rectangle(green)).astype(np.uint8)
                values[:3] = 255  # void
                label = Image.fromarray(values).convert("P")
            label.save(root / "Annotations/480p" / name / f"{i:05}.png")
    return root


@pytest.mark.parametrize("start", ["mask", "box", "point"])
def test_followers_on_drawn_videos(davis, start):
    predictor = ColourPredictor()
    scores = list(evaluate_video(predictor, VideoDataset(davis), ("tracker", "last-box"), start))
    assert predictor.encoded == 2 * 5, "a frame is encoded once"
    assert [(s.sequence, s.object, s.follower) for s in scores] == [
        ("one", 255, "tracker"),
        ("one", 255, "last-box"),
        ("two", 1, "tracker"),
        ("two", 2, "tracker"),
        ("two", 1, "last-box"),
        ("two", 2, "last-box"),
    ]
    for score in scores:
        assert score.frames == 4, "the first and the last frame do not count"
        if score.follower == "tracker":
            assert score.j > 0.85
            assert score.f > 0.9
            assert score.lost == 0
        assert score.seconds > 0
    table = video_table(scores).splitlines()
    assert len(table) == 2 + 6 + 2
    own = [s for s in scores if s.follower == "tracker"]
    j, f = np.mean([s.j for s in own]), np.mean([s.f for s in own])
    assert table[-2].startswith(f"| mean | | tracker | {j:.3f} | {f:.3f} | {(j + f) / 2:.3f} | 0 of 12 |")


def test_nanosam_follows_what_its_vector_tells_apart(davis):
    (score,) = evaluate_video(ColourPredictor(), VideoDataset(davis, ["one"]), ("nanosam",))
    assert score.j > 0.6


def test_a_lost_object_counts_as_an_empty_mask(tmp_path):
    """It leaves after the second frame: J is 1 where neither truth nor mask has a pixel."""
    for part in ("JPEGImages", "Annotations"):
        (tmp_path / part / "480p" / "a").mkdir(parents=True)
    for i in range(5):
        things = [(RED, (40, 40, 70, 70))] if i < 2 else []
        Image.fromarray(scene((BLUE, (100, 0, 130, 120)), *things, seed=i)).save(tmp_path / f"JPEGImages/480p/a/{i:05}.jpg")
        truth = rectangle((40, 40, 70, 70)) if i < 2 else np.zeros((120, 160), bool)
        Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / f"Annotations/480p/a/{i:05}.png")
    (score,) = evaluate_video(ColourPredictor(), VideoDataset(tmp_path))
    assert score.lost == 2
    assert score.j > 0.95


def test_command(davis, tmp_path, monkeypatch):
    monkeypatch.setattr("groupmix_sam.inference.Predictor.from_pretrained", lambda *args, **options: ColourPredictor())
    arguments = ["evaluate-video", str(davis), "--track", "tracker", "--start", "box", "--sequence", "one"]
    done = CliRunner().invoke(app, [*arguments, "--render", str(tmp_path / "videos")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "| one | 255 | tracker |" in done.stdout
    capture = cv2.VideoCapture(str(tmp_path / "videos" / "one.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4


def test_bad_input(davis, tmp_path):
    with pytest.raises(InvalidInputError, match="no Annotations/480p"):
        VideoDataset(tmp_path)
    with pytest.raises(UnknownNameError, match="no sequence 'tow': did you mean two"):
        VideoDataset(davis, ["tow"])
    data = VideoDataset(davis, ["one"])
    with pytest.raises(UnknownNameError, match="way of following"):
        next(evaluate_video(ColourPredictor(), data, ["samurai"]))
    with pytest.raises(UnknownNameError, match="start"):
        next(evaluate_video(ColourPredictor(), data, start="line"))
    (tmp_path / "Annotations/480p/a").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="has 0 frames"):
        next(evaluate_video(ColourPredictor(), VideoDataset(tmp_path)))
