"""A line that runs: on videos that the tests make, and on cameras that drop out."""

import itertools
import json
import os
import signal
import threading
import weakref
from contextlib import suppress
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from groupmix_sam.cli import app
from groupmix_sam.errors import ImageReadError, InvalidInputError
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.automatic import segment
from groupmix_sam.live.loop import Prompts, Result, stream
from groupmix_sam.live.sinks import Clock, MaskFile, Overlay
from groupmix_sam.live.sources import Frames
from groupmix_sam.prompts import Prompt
from groupmix_sam.weights import save_weights

from ..inference.conftest import draw

BOX = Prompts(boxes=np.array([[20.0, 10, 100, 80], [5, 5, 60, 60]]))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Seven frames of an image that grows brighter, 25 a second."""
    path = tmp_path_factory.mktemp("video") / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (120, 90))
    for i in range(7):
        writer.write(draw() // 2 + 15 * i)
    writer.release()
    return path


class Camera:
    """A capture of some frames, each of its own gray, or an error that it raises; then it fails."""

    def __init__(self, grays, opened=True):
        self.grays, self.opened, self.count = iter(grays), opened, 0

    def isOpened(self):  # noqa: N802
        return self.opened

    def read(self):
        gray = next(self.grays, None)
        self.count += 1
        if isinstance(gray, Exception):
            raise gray
        return (False, None) if gray is None else (True, np.full((90, 120, 3), gray, np.uint8))

    def release(self):
        pass


def test_every_frame_of_a_file(sam, video):
    predictor = Predictor(sam)
    results = list(stream(predictor, Frames(str(video)), BOX))
    assert [r.number for r in results] == list(range(7))
    capture = cv2.VideoCapture(str(video))
    for result in results:
        _, frame = capture.read()
        assert np.array_equal(result.frame, frame)
        predictor.set_image(np.ascontiguousarray(frame[:, :, ::-1]))
        masks, scores, _ = predictor.predict_prompts(boxes=BOX.boxes, multimask_output=False)
        assert np.array_equal(result.masks, masks[:, 0])
        assert np.array_equal(result.scores, scores[:, 0])


def test_prompts_from_a_function(sam, video):
    def only_even(number, frame):
        assert frame.shape == (90, 120, 3)
        return Prompts(boxes=np.array([[0, 0, 10.0 + number, 50]])) if number % 2 == 0 else None

    assert [r.number for r in stream(Predictor(sam), Frames(str(video)), only_even)] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("prompts", "prompt"),
    [
        (Prompts(points=np.array([[[60, 45]]]), labels=np.array([[1]])), Prompt([[60, 45]], [1])),
        (Prompts(points=np.array([[[60, 45], [9, 9]]]), labels=np.array([[1, 0]])), Prompt([[60, 45], [9, 9]], [1, 0])),
        (Prompts(boxes=np.array([[20, 10, 100, 80]])), Prompt(box=[20, 10, 100, 80])),
    ],
    ids=["a point", "two points", "a box"],
)
def test_the_mask_of_segment(sam, video, prompts, prompt):
    predictor = Predictor(sam)
    result = next(stream(predictor, Frames(str(video)), prompts))
    (instance,) = segment(predictor, np.ascontiguousarray(result.frame[:, :, ::-1]), [prompt])
    assert np.array_equal(instance.mask, result.masks[0])
    assert instance.score == pytest.approx(result.scores[0])


def test_prompts_outside_the_frame_end_the_stream(sam, video):
    beside = Prompts(boxes=np.array([[20.0, 10, 100, 80], [130, 10, 150, 80]]))
    with pytest.raises(InvalidInputError, match=r"\[130.0, 10.0, 150.0, 80.0\] is outside the image of 120 x 90"):
        next(stream(Predictor(sam), Frames(str(video)), beside))


@pytest.fixture
def clock(monkeypatch):
    """Time that passes where somebody sleeps, and nowhere else."""
    seconds = [0.0]

    def now():
        return seconds[0]

    clock = SimpleNamespace(monotonic=now, perf_counter=now, sleep=lambda pause: seconds.append(seconds.pop() + pause))
    for module in ("loop", "sinks", "sources"):
        monkeypatch.setattr(f"groupmix_sam.live.{module}.time", clock)
    return clock


class PacedCamera(Camera):
    """A capture that gives as many frames as it is let, and knows which of them are still held by anybody."""

    def __init__(self):
        super().__init__(itertools.count())
        self.allowed, self.asked = threading.Semaphore(1), threading.Semaphore(0)
        self.frames = []

    def read(self):
        if self.frames:
            self.asked.release()  # so the frame before has been stored
        self.allowed.acquire()
        found, frame = super().read()
        self.frames.append(weakref.ref(frame))
        return found, frame

    def give(self, count):
        for _ in range(count):
            self.asked.acquire()
            self.allowed.release()
        self.asked.acquire()
        self.asked.release()

    def held(self):
        return [number for number, frame in enumerate(self.frames) if frame() is not None]


def a_model(work):
    """Return a predictor that does some work on each frame and finds nothing."""
    found = np.zeros((1, 90, 120), bool), np.zeros(1)
    return SimpleNamespace(set_image=lambda frame, order: work(), predict_single_mask=lambda *prompts: found)


def test_newest_frame_wins():
    """While one frame is worked on four come: the last one is next, and none is held but these two."""
    camera, held = PacedCamera(), []

    def work():
        camera.give(4)
        held.append(camera.held())

    results = stream(a_model(work), Frames("0", open_capture=lambda source: camera), BOX)
    # A loop's variable would hold the result before.
    seen = list(map(lambda result: (result.number, int(result.frame[0, 0, 0])), itertools.islice(results, 5)))  # noqa: C417
    camera.allowed.release(100)  # else it waits for ever, and whoever closes it with it
    results.close()
    assert seen == [(0, 0), (4, 4), (8, 8), (12, 12), (16, 16)]
    assert held == [[0, 4], [4, 8], [8, 12], [12, 16], [16, 20]]


def test_rate_and_latencies_by_the_clock(clock):
    """Frames that take 0.1, 0.2, 0.3, 0.4 and 1 s end at 0.1, 0.3, 0.6, 1 and 2 s: four in 1.9 s."""
    pauses = iter([0.1, 0.2, 0.3, 0.4, 1.0])
    frames = Frames("line.avi", open_capture=lambda source: Camera(range(5)))
    measured = Clock()
    for result in stream(a_model(lambda: clock.sleep(next(pauses))), frames, BOX):
        measured.add(result.seconds)
    assert measured.summary() == "2.1 frames/s, latency 300 ms median, 880 ms 95 %, 976 ms 99 %"


def test_a_source_that_drops_out_comes_back(clock):
    cameras = [Camera([], opened=False), Camera([1]), Camera([cv2.error("no signal")]), Camera([2])]
    opened, first = [], threading.Event()

    def open_capture(source):
        opened.append(source)
        if len(cameras) == 1:
            first.wait()  # else the second frame may take the place of the first
        return cameras.pop(0) if cameras else Camera([])

    frames = Frames("rtsp://line/1", patience=0.5, open_capture=open_capture)
    seen = []
    with pytest.raises(ImageReadError, match=r"gave no frame for 0.5 s"):  # noqa: PT012
        for _, frame in frames:
            seen.append(int(frame[0, 0, 0]))
            first.set()
    assert seen == [1, 2]
    assert set(opened) == {"rtsp://line/1"}
    frames._thread.join(timeout=60)
    assert not frames._thread.is_alive()


def test_what_a_capture_raises_ends_the_stream():
    frames = Frames("0", open_capture=lambda source: Camera([1, 2, RuntimeError("unplugged")]))
    seen = []
    with pytest.raises(RuntimeError, match="unplugged"):  # noqa: PT012
        for _, frame in frames:
            seen.append(int(frame[0, 0, 0]))
    assert seen[-1] == 2


def test_camera_by_index(clock):
    opened = []
    frames = Frames("3", patience=5, open_capture=lambda source: opened.append(source) or Camera([]))
    with pytest.raises(ImageReadError, match="check the camera"):
        list(frames)
    assert set(opened) == {3}


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("0", True),
        ("rtsp://line/1", True),
        ("/dev/video0", True),
        ("/dev/v4l/by-id/usb-camera-index0", True),
        ("nvarguscamerasrc ! nvvidconv ! appsink", True),
        ("line.mp4", False),
        ("file:///videos/line.mp4", False),
        ("C:/videos/line!.mp4", False),
    ],
)
def test_which_sources_are_live(source, live):
    assert Frames(source).live == live


def test_stops_from_another_thread():
    frames = Frames("0", open_capture=lambda source: Camera([], opened=False))
    threading.Timer(0.1, frames.close).start()
    assert list(frames) == []


@pytest.mark.parametrize("kind", [MaskFile, Overlay])
def test_outputs_take_their_names_in_the_end(tmp_path, kind):
    path = tmp_path / "out.avi"
    masks = np.zeros((1, 90, 120), bool)
    masks[0, 20:40, 30:50] = True
    with pytest.raises(RuntimeError, match="the line stops"), kind(path) as out:  # noqa: PT012
        out.write(Result(0, draw(), masks, np.array([0.5]), 0.1))
        assert not path.exists()
        raise RuntimeError("the line stops")
    assert [p.name for p in tmp_path.iterdir()] == ["out.avi"]


@pytest.mark.parametrize("kind", [MaskFile, Overlay])
@pytest.mark.parametrize("error", [RuntimeError("no camera"), None], ids=["an error", "Ctrl-C, which the command takes"])
def test_where_there_was_no_frame_what_was_there_stays(tmp_path, kind, error):
    path = tmp_path / "out.avi"
    path.write_bytes(b"of yesterday")
    with suppress(RuntimeError), kind(path):
        if error is not None:
            raise error
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.avi", b"of yesterday")]


def test_overlay_shows_the_mask(tmp_path):
    masks = np.zeros((1, 90, 120), bool)
    masks[0, 20:60, 30:80] = True
    gray = np.full((90, 120, 3), 100, np.uint8)
    with Overlay(tmp_path / "a.avi") as out:
        out.write(Result(0, gray, masks, np.array([0.5]), 0.1))
    found, frame = cv2.VideoCapture(str(tmp_path / "a.avi")).read()
    assert found
    # Half gray, half Okabe and Ito's green, 0 158 115, in OpenCV's order.
    np.testing.assert_allclose(frame[40, 55], [107, 129, 50], atol=12)
    np.testing.assert_allclose(frame[5, 5], 100, atol=12)


def test_command(video, tmp_path, sam):
    """With weights of one's own, as every command takes them."""
    weights = save_weights(sam, tmp_path / "mine.safetensors")
    masks, overlay, prompts = tmp_path / "masks.jsonl", tmp_path / "a.avi", tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"boxes": BOX.boxes.tolist()}))
    arguments = ["stream", str(video), "--prompts", str(prompts), "--masks", str(masks), "--overlay", str(overlay)]
    arguments += ["--checkpoint", str(weights), "--encoder", "gmf_sam_test", "--image-size", "256"]
    done = CliRunner().invoke(app, [*arguments, "--limit", "4"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "4 frames" in done.stdout
    assert "ms median" in done.stdout
    lines = [json.loads(line) for line in masks.read_text().splitlines()]
    results = list(stream(Predictor(sam), Frames(str(video)), BOX))[:4]
    for line, result in zip(lines, results, strict=True):
        assert line["frame"] == result.number
        for rle, mask in zip(line["masks"], result.masks, strict=True):
            assert coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) == {**rle, "counts": rle["counts"].encode()}
    seen = cv2.VideoCapture(str(overlay))
    assert (seen.get(cv2.CAP_PROP_FRAME_COUNT), seen.get(cv2.CAP_PROP_FPS)) == (4, 25)


def test_a_service_that_is_stopped_keeps_its_masks(tmp_path, sam, monkeypatch):
    weights = save_weights(sam, tmp_path / "mine.safetensors")
    masks = tmp_path / "masks.jsonl"

    class Stopped(Camera):
        def read(self):
            if self.count == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().read()

    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Stopped(range(9)))
    before = signal.getsignal(signal.SIGTERM)
    arguments = ["stream", "line.avi", "--box", "9,9,60,60", "--masks", str(masks), "--checkpoint", str(weights)]
    done = CliRunner().invoke(app, [*arguments, "--encoder", "gmf_sam_test", "--image-size", "256"], catch_exceptions=False)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "stopped")
    assert [json.loads(line)["frame"] for line in masks.read_text().splitlines()] == [0, 1, 2]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("source", "told", "rate"),
    [("a.mp4", 30000 / 1001, 29.97), ("a.mp4", 0.0, 10), ("a.mp4", float("nan"), 10), ("rtsp://line/1", 90000.0, 10)],
)
def test_rate(tmp_path, source, told, rate):
    """A file's own, and 10 of what does not tell it or whose frames are skipped; as the overlay then has it."""
    capture = SimpleNamespace(get={cv2.CAP_PROP_FPS: told}.get, release=lambda: None)
    frames = Frames(source, open_capture=lambda source: capture)
    assert frames.rate == rate
    with Overlay(tmp_path / "a.mp4", frames.rate) as out:
        out.write(Result(0, draw(), np.zeros((1, 90, 120), bool), np.array([0.5]), 0.1))
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(rate)


def test_clock():
    clock = Clock()
    assert clock.summary() == "no frame yet"
    for i in range(1, 2001):
        clock.add(i / 1000)
    assert len(clock._latencies) == 1000
    assert "latency 1500 ms median, 1950 ms 95 %, 1990 ms 99 %" in clock.summary()


def test_prompt_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"points": [[[3, 4]], [[5, 6]]]}))
    prompts = Prompts.from_file(path)
    assert prompts.boxes is None
    assert prompts.labels.tolist() == [[1], [1]]
    path.write_text(json.dumps({"points": [[[3, 4]], [[5, 6], [7, 8]]], "boxes": [[1, 2, 9, 9], [1, 2, 9, 8]]}))
    prompts = Prompts.from_file(path)
    assert prompts.boxes.tolist() == [[1, 2, 9, 9], [1, 2, 9, 8]]
    assert prompts.points.tolist() == [[[3, 4], [0, 0]], [[5, 6], [7, 8]]]
    assert prompts.labels.tolist() == [[1, -1], [1, 1]], "-1 is no point"
    for text in ("no json", "[]", "{}", '{"boxes": [[1], [1, 2]]}', '[{"image": "a.jpg", "x": 1, "y": 2}]'):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match=r"a\.json"):
            Prompts.from_file(path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        Prompts.from_file(tmp_path / "none.json")


def test_bad_files(tmp_path):
    with pytest.raises(ImageReadError, match=r"line\.avi has no frame"):
        list(Frames("line.avi", open_capture=lambda source: Camera([])))
    with pytest.raises(ImageReadError, match="cannot be opened as a video"):
        list(Frames(str(tmp_path / "none.avi")))
    for kind, name in ((MaskFile, "no/where.jsonl"), (Overlay, "a.gif"), (Overlay, ".")):
        with pytest.raises(InvalidInputError, match="cannot write"):
            kind(tmp_path / name)
