"""A line that runs: on videos that the tests make, and on cameras that drop out."""

import itertools
import json
import os
import re
import signal
import struct
import threading
import time
import tracemalloc
import weakref
from collections import Counter
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from groupmix_sam.cli import app
from groupmix_sam.errors import ImageReadError, InvalidInputError, SaveError
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.automatic import segment
from groupmix_sam.live.loop import Result, stream, track
from groupmix_sam.live.sinks import Clock, CocoVideo, Crops, MaskFile, Overlay
from groupmix_sam.live.sources import Frames
from groupmix_sam.live.tracker import TrackedObject, Tracker
from groupmix_sam.masks import decode_rle, mask_iou
from groupmix_sam.prompts import Prompt, read_shared_prompts, stack_prompts
from groupmix_sam.weights import save_weights

from ..inference.conftest import draw
from ..release import ALL
from .fake import RED, ColourPredictor, rectangle, scene

BOXES = np.array([[20.0, 10, 100, 80], [5, 5, 60, 60]])
BOX = [Prompt(box=box) for box in BOXES.tolist()]


def result(number, level=100, size=(90, 120)):
    """Return a result of a gray frame without a mask, 0.1 s after the one before."""
    return Result(number, number / 10, np.full((*size, 3), level, np.uint8), np.zeros((0, *size), bool), np.zeros(0), 0.1)


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

    def __init__(self, grays, opened=True, total=0):
        self.grays, self.opened, self.count, self.total = iter(grays), opened, 0, total

    def isOpened(self):  # noqa: N802
        return self.opened

    def read(self):
        gray = next(self.grays, None)
        self.count += 1
        if isinstance(gray, Exception):
            raise gray
        return (False, None) if gray is None else (True, np.full((90, 120, 3), gray, np.uint8))

    def get(self, key):
        return float(self.total) if key == cv2.CAP_PROP_FRAME_COUNT else 0.0

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
        masks, scores, _ = predictor.predict_prompts(
            boxes=np.array([[20.0, 10, 100, 80], [5, 5, 60, 60]]), multimask_output=False
        )
        assert np.array_equal(result.masks, masks[:, 0])
        assert np.array_equal(result.scores, scores[:, 0])


def test_prompts_from_a_function(sam, video):
    def only_even(number, frame):
        assert frame.shape == (90, 120, 3)
        return [Prompt(box=[0, 0, 10.0 + number, 50])] if number % 2 == 0 else None

    assert [r.number for r in stream(Predictor(sam), Frames(str(video)), only_even)] == [0, 2, 4, 6]


def test_a_detector_that_finds_nothing(sam, video, tmp_path):
    """Its frames come without masks, and those behind them as ever."""
    with MaskFile(tmp_path / "m.jsonl") as masks, Overlay(tmp_path / "a.avi") as overlay:
        for found in stream(Predictor(sam), Frames(str(video)), lambda number, _: BOX if number > 4 else []):
            masks.write(found)
            overlay.write(found)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(len(line["masks"]), len(line["scores"])) for line in lines] == [(0, 0)] * 5 + [(2, 2)] * 2


@pytest.mark.parametrize(
    "prompt",
    [Prompt([[60, 45]], [1]), Prompt([[60, 45], [9, 9]], [1, 0]), Prompt(box=[20, 10, 100, 80])],
    ids=["a point", "two points", "a box"],
)
def test_the_mask_of_segment(sam, video, prompt):
    predictor = Predictor(sam)
    result = next(stream(predictor, Frames(str(video)), [prompt]))
    (instance,) = segment(predictor, np.ascontiguousarray(result.frame[:, :, ::-1]), [prompt])
    assert np.array_equal(instance.mask, result.masks[0])
    assert instance.score == pytest.approx(result.scores[0])


def test_prompts_outside_the_frame_end_the_stream(sam, video):
    beside = [Prompt(box=[20.0, 10, 100, 80]), Prompt(box=[130, 10, 150, 80])]
    with pytest.raises(InvalidInputError, match=r"\[130.0, 10.0, 150.0, 80.0\] is outside the image of 120 x 90"):
        next(stream(Predictor(sam), Frames(str(video)), beside))


@pytest.fixture
def clock(monkeypatch):
    """Time that passes where somebody sleeps, and nowhere else."""
    seconds = [0.0]

    def now():
        return seconds[0]

    clock = SimpleNamespace(
        monotonic=now, perf_counter=now, time=now, sleep=lambda pause: seconds.append(seconds.pop() + pause)
    )
    for module in ("sources", "loop", "sinks"):
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
        for _, _, frame in frames:
            seen.append(int(frame[0, 0, 0]))
            first.set()
    assert seen == [1, 2]
    assert set(opened) == {"rtsp://line/1"}
    frames._reader.thread.join(timeout=60)
    assert not frames._reader.thread.is_alive()


def test_what_a_capture_raises_ends_the_stream():
    frames = Frames("0", open_capture=lambda source: Camera([1, 2, RuntimeError("unplugged")]))
    seen = []
    with pytest.raises(RuntimeError, match="unplugged"):  # noqa: PT012
        for _, _, frame in frames:
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
        ("/dev/video99", True),
        ("/dev/v4l/by-id/usb-camera-index0", True),
        ("/dev/null", True),
        ("nvarguscamerasrc ! nvvidconv ! appsink", True),
        ("rtspsrc location=rtsp://line/1 ! decodebin ! appsink", True),
        ("line.mp4", False),
        ("/dev/shm/line.mp4", False),
        ("file:///videos/line.mp4", False),
        ("C:/videos/line!.mp4", False),
    ],
)
def test_which_sources_are_live(source, live):
    assert Frames(source).live == live


@pytest.mark.parametrize(
    ("source", "total", "live"),
    [
        ("rtsp://line/1", 0, True),
        ("rtsp://line/1", -9.2e18, True),
        ("https://line/a.mp4", 3, False),
        ("http://line/mjpeg", float("nan"), True),
        ("rtsp://recorder/monday", 3, False),
    ],
)
def test_a_url_with_a_number_of_frames_is_a_video(source, total, live):
    """All of whose frames are taken, once, from the capture that told so."""
    captures = []
    frames = Frames(source, open_capture=lambda _: captures.append(Camera([5, 6, 7], total=total)) or captures[-1])
    assert frames.live == live
    if not live:
        assert frames.rate == 10
        assert [(number, int(image[0, 0, 0])) for number, _, image in frames] == [(0, 5), (1, 6), (2, 7)]
        assert len(captures) == 1
    frames.close()


def test_a_url_that_does_not_answer_is_a_camera():
    stop = threading.Event()
    frames = Frames("rtsp://line/1", patience=0.3, open_capture=lambda source: stop.wait() and Camera([]))
    assert frames.live
    with pytest.raises(ImageReadError, match=r"rtsp://line/1 gave no frame for 0.3 s"):
        list(frames)
    stop.set()


def test_a_video_over_http(video):
    """As another process serves it: its frames are all there, and then it ends."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=video.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        frames = Frames(f"http://127.0.0.1:{server.server_port}/{video.name}")
        assert (frames.live, frames.rate) == (False, 25)
        assert [frame.number for frame in frames] == list(range(7))
        server.shutdown()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Twenty frames whose number is in their gray, each an image of its own, in a container that has their times."""
    path = tmp_path_factory.mktemp("film") / "a.mkv"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), 10 * number + 20, np.uint8))
    writer.release()
    return path


def read_all(path):
    """Return each frame's number and the one that its gray tells, and the error at the end."""
    seen, error = [], None
    try:
        for frame in Frames(str(path)):
            seen.append((frame.number, round((float(frame.image.mean()) - 20) / 10), round(frame.time * 25)))
    except ImageReadError as e:
        error = str(e)
    return seen, error


def test_a_whole_video(film):
    assert read_all(film) == ([(number,) * 3 for number in range(20)], None)


def test_a_damaged_video(film, tmp_path):
    """Frames 5 to 7 have lost their content: those behind keep their numbers, and an error says how many are missing."""
    data = bytearray(film.read_bytes())
    starts = [found.start() for found in re.finditer(b"\xff\xd8\xff", data)]
    assert len(starts) == 20
    for number in (5, 6, 7):
        size = starts[number + 1] - starts[number] - 40  # not the next block's head
        data[starts[number] : starts[number] + size] = bytes(size)
    (tmp_path / "a.mkv").write_bytes(data)
    seen, error = read_all(tmp_path / "a.mkv")
    assert seen == [(number,) * 3 for number in range(20) if number not in (5, 6, 7)]
    assert error.startswith(
        f"3 of 20 frames of {tmp_path}/a.mkv are missing, it is truncated or damaged: copy or record it again"
    )


def test_a_truncated_video(film, tmp_path):
    (tmp_path / "a.mkv").write_bytes(film.read_bytes()[: film.stat().st_size * 6 // 10])
    seen, error = read_all(tmp_path / "a.mkv")
    assert seen == [(number,) * 3 for number in range(len(seen))]
    assert 5 < len(seen) < 15
    assert error.startswith(f"{20 - len(seen)} of 20 frames of ")


def test_what_a_damaged_video_gave_is_kept(sam, film, tmp_path):
    (tmp_path / "a.mkv").write_bytes(film.read_bytes()[: film.stat().st_size * 6 // 10])
    save_weights(sam, tmp_path / "weights")
    arguments = ["stream", str(tmp_path / "a.mkv"), "--box", "5,5,40,40", "--checkpoint", str(tmp_path / "weights")]
    with pytest.raises(ImageReadError, match=r"of 20 frames of .* are missing"):
        CliRunner().invoke(app, [*arguments, "--masks", str(tmp_path / "m.jsonl")], catch_exceptions=False)
    lines = [json.loads(line)["frame"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert lines == list(range(len(lines))) != []


SECRET_SOURCES = ["rtsp://admin:hunter2@127.0.0.1:9/1", "http://127.0.0.1:9/?user=admin&password=hunter2&channel=1"]


@pytest.mark.parametrize("source", SECRET_SOURCES)
def test_a_cameras_password_is_told_to_nobody(source, capfd, caplog):
    """Not by the error, and not by OpenCV, which would try a pattern of images' names last, and print it."""
    with pytest.raises(ImageReadError, match=r"\*\*\*.* gave no frame for 0.3 s") as error:
        list(Frames(source, patience=0.3))
    printed = capfd.readouterr()
    assert "hunter2" not in f"{error.value} {error.value!r} {printed.out} {printed.err} {caplog.text}"


def test_stops_from_another_thread():
    frames = Frames("0", open_capture=lambda source: Camera([], opened=False))
    threading.Timer(0.1, frames.close).start()
    assert list(frames) == []


def test_an_overlay_takes_its_name_in_the_end(tmp_path):
    path = tmp_path / "out.avi"
    with pytest.raises(RuntimeError, match="the line stops"), Overlay(path) as out:  # noqa: PT012
        out.write(result(0))
        assert not path.exists()
        raise RuntimeError("the line stops")
    assert [p.name for p in tmp_path.iterdir()] == ["out.avi"]


@pytest.mark.parametrize("error", [RuntimeError("no camera"), None], ids=["an error", "Ctrl-C, which the command takes"])
def test_where_there_was_no_frame_the_overlay_of_before_stays(tmp_path, error):
    path = tmp_path / "out.avi"
    path.write_bytes(b"of yesterday")
    with suppress(RuntimeError), Overlay(path):
        if error is not None:
            raise error
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.avi", b"of yesterday")]


def test_masks_can_be_read_while_they_are_written(tmp_path):
    path = tmp_path / "masks.jsonl"
    with MaskFile(path) as out:
        for i in range(3):
            out.write(result(i))
            assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == list(range(i + 1))
    assert [p.name for p in tmp_path.iterdir()] == ["masks.jsonl"]


@pytest.mark.parametrize("size", [1, 100_000], ids=["a short line", "a line longer than a block"])
def test_a_power_cut_costs_one_line(tmp_path, size):
    path = tmp_path / "masks.jsonl"
    with MaskFile(path) as out:
        out.write(result(0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"frame": 1, "ti' + b"m" * size)
    with MaskFile(path) as out:
        out.write(result(2))
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == [0, 2]


def test_a_file_of_somebody_elses_is_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("a line\nand one without an end")
    with MaskFile(path) as out:
        out.write(result(0))
    assert path.read_text().startswith("a line\nand one without an end\n{")


def test_objects_as_json(tmp_path):
    mask = np.zeros((90, 120), bool)
    mask[2:5, 3:9] = True
    seen = TrackedObject(4, mask, np.array([3.0, 2, 9, 5]), 0.75, "found")
    lost = TrackedObject(7, None, None, 0.0, "lost")
    with MaskFile(tmp_path / "a.jsonl") as out:
        out.write(result(5)._replace(objects=[seen, lost]))
    record = json.loads((tmp_path / "a.jsonl").read_text())
    (first, second) = record["objects"]
    assert np.array_equal(decode_rle(first.pop("mask")), mask)
    assert first == {"id": 4, "state": "found", "score": 0.75, "box": [3, 2, 9, 5]}
    assert second == {"id": 7, "state": "lost", "score": 0, "box": None, "mask": None}
    assert (record["frame"], record["time"]) == (5, 0.5)


def gray_levels(path):
    """Return the mean of each frame of a video and its shape."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        found, frame = capture.read()
        if not found:
            return [round(float(f.mean())) for f in frames], {f.shape for f in frames}
        frames.append(frame)


def test_an_overlay_keeps_times(tmp_path):
    """At 10 frames a second: a frame that is shown for 0.3 s is there three times, one that was gone for an hour 20 times.

    After that, and after a clock was set back, frames are shown as long as before.
    """
    with Overlay(tmp_path / "a.avi", 10) as out:
        for level, moment in ((50, 7.0), (100, 7.1), (150, 7.4), (200, 7.42), (250, 3607.0), (200, 3607.1), (150, 3607.3)):
            out.write(result(0, level)._replace(time=moment))
        for level, moment in ((100, 7.0), (50, 7.2)):
            out.write(result(0, level)._replace(time=moment))
    levels, _ = gray_levels(tmp_path / "a.avi")
    assert np.allclose(levels, [50, 100, 150, 150, 150, 200, *[250] * 20, 200, 150, 150, 100, 50, 50], atol=3)


def test_an_overlay_of_a_fast_camera_is_no_slow_motion(tmp_path):
    """Ten seconds of a hundred frames a second, ten of which fit into a second of the video: it may be a second longer."""
    with Overlay(tmp_path / "a.avi", 10) as out:
        for i in range(1000):
            out.write(result(i, 50 + i // 10, (16, 16))._replace(time=7 + i / 100))
    levels, _ = gray_levels(tmp_path / "a.avi")
    assert len(levels) == pytest.approx(110, abs=2)
    assert levels == sorted(levels)
    assert levels[-1] == pytest.approx(149, abs=3)


def test_an_overlay_of_frames_that_change_their_size(tmp_path):
    """All are there, in the size of the first; one of another shape lies in the middle, between black."""
    with Overlay(tmp_path / "a.avi", 10) as out:
        for i, size in enumerate([(90, 120), (180, 240), (90, 60), (90, 120)]):
            out.write(result(i, 200, size))
    levels, shapes = gray_levels(tmp_path / "a.avi")
    assert shapes == {(90, 120, 3)}
    assert np.allclose(levels, [200, 200, 100, 200], atol=3)


def test_a_rotated_video_comes_upright(tmp_path):
    """As a phone writes it: the frames lie on their side, and the track's matrix says so."""
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 32))
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:16] = 255
    for _ in range(3):
        writer.write(frame)
    writer.release()
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[start : start + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)  # by 90 degrees
    path.write_bytes(data)
    frames = list(Frames(str(path)))
    assert [frame.image.shape for frame in frames] == [(64, 32, 3)] * 3
    assert frames[0].image[:, 16:].mean() > 240
    assert frames[0].image[:, :16].mean() < 15


def test_times_of_a_video_of_variable_rate(tmp_path):
    path = tmp_path / "a.gif"
    images = [Image.new("L", (32, 32), level) for level in (0, 80, 160, 240)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 300, 50, 200])
    frames = list(Frames(str(path)))
    assert [frame.number for frame in frames] == [0, 1, 2, 3]
    np.testing.assert_allclose([frame.time for frame in frames], [0, 0.1, 0.4, 0.45], atol=0.011)


def test_a_frame_that_was_never_recorded():
    """As a phone's MP4 has it, which counts its frames: none is missing, though the times leave room for one more."""
    times = [0.0, 100.0, 200.0, 400.0, 500.0]

    class Phone(Camera):
        def get(self, key):
            now = times[min(max(self.count, 1), len(times)) - 1]
            return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: 5.0, cv2.CAP_PROP_POS_MSEC: now}[key]

    frames = list(Frames("a.mp4", open_capture=lambda source: Phone(range(5))))
    assert [(frame.number, 1000 * frame.time) for frame in frames] == list(zip((0, 1, 2, 4, 5), times, strict=True))


def test_a_recording_of_a_browser():
    """Chromium's WebM says 1000 frames/s and as many frames as milliseconds, here 157; each frame has its own time."""
    times = [0.0, 5.0, 87.0, 157.0]

    class Recording(Camera):
        def get(self, key):
            now = times[min(max(self.count, 1), len(times)) - 1]
            return {cv2.CAP_PROP_FPS: 1000.0, cv2.CAP_PROP_FRAME_COUNT: 157.0, cv2.CAP_PROP_POS_MSEC: now}[key]

    frames = Frames("a.webm", open_capture=lambda source: Recording([50, 100, 150, 200]))
    assert frames.rate == 30
    assert [(frame.number, 1000 * frame.time) for frame in frames] == list(enumerate(times))


def test_times_of_a_camera():
    before = time.time()
    frame = next(iter(Frames("0", open_capture=lambda source: Camera(itertools.repeat(7)))))
    assert before <= frame.time <= time.time()


def test_gray_frames():
    """As GStreamer gives those of a gray camera, H x W, of 8 or 16 bits; the last one has a fourth channel."""
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colours = np.dstack([gray, gray + 20, gray + 40])

    def capture_of(images):
        return SimpleNamespace(isOpened=lambda: True, read=lambda: next(images), get=lambda key: 0.0, release=lambda: None)

    images = [gray, 257 * gray.astype(np.uint16), np.dstack([colours, gray])]
    video = capture_of(iter([*((True, image) for image in images), (False, None)]))
    expected = [np.dstack([gray] * 3), np.dstack([gray] * 3), colours]
    for frame, wanted in zip(Frames("a.avi", open_capture=lambda source: video), expected, strict=True):
        assert frame.image.dtype == np.uint8
        assert np.array_equal(frame.image, wanted)
    camera = capture_of(itertools.repeat((True, gray)))
    frame = next(iter(Frames("v4l2src ! appsink", open_capture=lambda source: camera)))
    assert np.array_equal(frame.image, np.dstack([gray] * 3))


def test_a_camera_that_does_not_answer_is_opened_anew():
    """The first read never returns; the second capture gives frames, and what the first gives in the end is too late."""
    answer, opened = threading.Event(), []

    class Silent(Camera):
        def read(self):
            answer.wait()
            return super().read()

    def open_capture(source):
        opened.append(source)
        return Silent([1]) if len(opened) == 1 else Camera(itertools.repeat(2))

    frames = Frames("0", patience=0.3, open_capture=open_capture)
    seen = []
    for frame in frames:
        seen.append(int(frame.image[0, 0, 0]))
        if len(seen) == 2:
            answer.set()
        if len(seen) == 20:
            break
    frames.close()
    assert set(seen) == {2}
    assert len(opened) == 2


def test_a_camera_that_never_answers_is_given_up():
    stop = threading.Event()
    silent = SimpleNamespace(isOpened=lambda: True, read=lambda: stop.wait() and (False, None), release=lambda: None)
    with pytest.raises(ImageReadError, match=r"gave no frame for 0.2 s"):
        list(Frames("0", patience=0.2, open_capture=lambda source: silent))
    stop.set()


def test_nothing_grows_with_the_number_of_frames(tmp_path):
    """A looped video through the loop and all that writes: the peak of 300 frames is that of 60."""

    def peak(count):
        frames = Frames("line.avi", open_capture=lambda source: Camera(i % 7 for i in range(count)))
        clock = Clock()
        tracemalloc.reset_peak()
        with MaskFile(tmp_path / "a.jsonl") as masks, Overlay(tmp_path / "a.avi") as overlay:
            for found in stream(a_model(lambda: None), frames, BOX):
                masks.write(found)
                overlay.write(found)
                clock.add(found.seconds)
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        peak(60)
        assert peak(300) == pytest.approx(peak(60), rel=0.1)
    finally:
        tracemalloc.stop()


@pytest.mark.release
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux, which says how much memory a process holds")
def test_an_hour_of_frames(tmp_path, monkeypatch):
    """A looped video through the tracker and the file of masks: the process does not grow. A release takes a whole hour's."""
    count = 90_000 if ALL else 900
    monkeypatch.setattr(os, "fsync", lambda file: None)  # ten minutes of waiting for the disk
    there = [scene((RED, (20 + 3 * i, 40, 50 + 3 * i, 70)), seed=i)[:, :, ::-1].copy() for i in range(12)]
    loop = [frame for frame in there + there[-2:0:-1] for _ in range(10)]  # forth and back, and each stands for a while
    moving = Camera([])
    numbers = iter(range(count))
    moving.read = lambda: (False, None) if (i := next(numbers, None)) is None else (True, loop[i % len(loop)])

    def held():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    clock, memory, states = Clock(), [], Counter()
    frames = Frames("line.avi", open_capture=lambda source: moving)
    with MaskFile(tmp_path / "a.jsonl") as masks:
        for found in track(Tracker(ColourPredictor()), frames, [Prompt(box=[20, 40, 50, 70])]):
            masks.write(found)
            clock.add(found.seconds)
            states[found.objects[0].state] += 1
            if found.number % (count // 10) == 0:
                memory.append(held())
    assert states == {"tracked": count}
    assert max(memory[3:]) - memory[2] < 4e6


def test_overlay_shows_the_mask(tmp_path):
    masks = np.zeros((1, 90, 120), bool)
    masks[0, 20:60, 30:80] = True
    gray = np.full((90, 120, 3), 100, np.uint8)
    with Overlay(tmp_path / "a.avi") as out:
        out.write(Result(0, 0.0, gray, masks, np.array([0.5]), 0.1))
    found, frame = cv2.VideoCapture(str(tmp_path / "a.avi")).read()
    assert found
    # Half gray, half Okabe and Ito's green, 0 158 115, in OpenCV's order.
    np.testing.assert_allclose(frame[40, 55], [107, 129, 50], atol=12)
    np.testing.assert_allclose(frame[5, 5], 100, atol=12)


def test_command(video, tmp_path, sam):
    """With weights of one's own, as every command takes them."""
    weights = save_weights(sam, tmp_path / "mine.safetensors")
    masks, overlay, prompts = tmp_path / "masks.jsonl", tmp_path / "a.avi", tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"boxes": BOXES.tolist()}))
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
        assert line["time"] == pytest.approx(result.number / 25, abs=1e-3)
    seen = cv2.VideoCapture(str(overlay))
    assert (seen.get(cv2.CAP_PROP_FRAME_COUNT), seen.get(cv2.CAP_PROP_FPS)) == (4, 25)


def test_command_that_tracks(tmp_path, sam, monkeypatch):
    """What the prompts mean in the first frame is followed; the model is one by colour."""
    monkeypatch.setattr("groupmix_sam.inference.Predictor.from_pretrained", lambda *args, **options: ColourPredictor())
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 120))
    for i in range(5):
        writer.write(scene((RED, (20 + 4 * i, 40, 50 + 4 * i, 70)), seed=i)[:, :, ::-1])
    writer.release()
    arguments = ["stream", str(path), "--track", "--box", "20,40,50,70", "--masks", str(tmp_path / "a.jsonl")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    for i, line in enumerate(lines):
        (item,) = line["objects"]
        assert (item["id"], item["state"]) == (0, "tracked")
        assert mask_iou(decode_rle(item["mask"]), rectangle((20 + 4 * i, 40, 50 + 4 * i, 70))) > 0.8


def test_command_with_a_fixed_camera(video, tmp_path, sam):
    weights = save_weights(sam, tmp_path / "mine.safetensors")
    arguments = ["stream", str(video), "--box", "20,10,100,80", "--fixed-camera", "--limit", "2"]
    arguments += ["--checkpoint", str(weights), "--encoder", "gmf_sam_test", "--image-size", "256"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (done.exit_code, "2 frames" in done.stdout) == (0, True)


def test_a_service_that_is_stopped_keeps_its_masks(tmp_path, sam, monkeypatch):
    weights = save_weights(sam, tmp_path / "mine.safetensors")
    masks = tmp_path / "masks.jsonl"

    class Stopped(Camera):
        def read(self):
            if self.count == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().read()

    monkeypatch.setattr(Frames, "_open_capture", lambda self, source: Stopped(range(9)))
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
        out.write(Result(0, 0.0, draw(), np.zeros((1, 90, 120), bool), np.array([0.5]), 0.1))
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
    points, labels, boxes = stack_prompts(read_shared_prompts(path))
    assert boxes is None
    assert (points.tolist(), labels.tolist()) == ([[[3, 4]], [[5, 6]]], [[1], [1]])
    path.write_text(json.dumps({"points": [[[3, 4]], [[5, 6], [7, 8]]], "boxes": [[1, 2, 9, 9], [1, 2, 9, 8]]}))
    points, labels, boxes = stack_prompts(read_shared_prompts(path))
    assert boxes.tolist() == [[1, 2, 9, 9], [1, 2, 9, 8]]
    assert points.tolist() == [[[3, 4], [0, 0]], [[5, 6], [7, 8]]]
    assert labels.tolist() == [[1, -1], [1, 1]], "-1 is no point"
    for text in ("no json", "[]", "{}", '{"boxes": [[1], [1, 2]]}', '[{"image": "a.jpg", "x": 1, "y": 2}]'):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match=r"a\.json"):
            read_shared_prompts(path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_shared_prompts(tmp_path / "none.json")


def test_bad_files(tmp_path):
    with pytest.raises(ImageReadError, match=r"line\.avi has no frame"):
        list(Frames("line.avi", open_capture=lambda source: Camera([])))
    with pytest.raises(ImageReadError, match="cannot be opened as a video"):
        list(Frames(str(tmp_path / "none.avi")))
    for kind, name in ((MaskFile, "no/where.jsonl"), (Overlay, "a.gif"), (Overlay, ".")):
        with pytest.raises(InvalidInputError, match="cannot write"):
            kind(tmp_path / name)


def followed(number, *masks):
    """Return a result of objects that are followed, lost where there is no mask, in a frame of its own colours."""
    frame = np.random.default_rng(number).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    objects = [TrackedObject(i, mask, None, 1.0, "lost" if mask is None else "tracked") for i, mask in enumerate(masks)]
    seen = np.array([item.mask for item in objects if item.mask is not None]).reshape(-1, 90, 120)
    return Result(number, number / 10, frame, seen, np.ones(len(seen)), 0.1, objects)


MASK = rectangle((10, 20, 40, 60), (90, 120))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # pycocotools'
def test_coco_for_videos(tmp_path):
    """Three frames, of which the second is skipped: an object that is lost for one, and one that is added later."""
    path = tmp_path / "video.json"
    with CocoVideo(path) as out:
        out.write(followed(0, MASK))
        out.write(followed(2, None, MASK))
        assert not path.exists()
        out.write(followed(3, MASK, MASK))
    content = json.loads(path.read_text())
    assert content["videos"] == [
        {"id": 1, "width": 120, "height": 90, "length": 3, "file_names": ["000000.jpg", "000002.jpg", "000003.jpg"]}
    ]
    first, second = content["annotations"]
    assert [first["id"], first["track_id"], second["id"], second["track_id"]] == [1, 0, 2, 1]
    assert first["areas"] == [1200, None, 1200]
    assert first["bboxes"] == [[10, 20, 30, 40], None, [10, 20, 30, 40]]
    assert second["areas"] == [None, 1200, 1200]
    assert second["segmentations"][0] is None
    assert np.array_equal(coco_mask.decode(second["segmentations"][1]), MASK)
    # Of prompts in every frame, each is a track, which is not seen where its mask is empty; nothing is written of no frame.
    with CocoVideo(path) as out:
        out.write(result(0)._replace(masks=MASK[None]))
        out.write(result(1)._replace(masks=np.zeros_like(MASK)[None]))
    (annotation,) = json.loads(path.read_text())["annotations"]
    assert (annotation["areas"], annotation["segmentations"][1]) == ([1200, None], None)
    with CocoVideo(tmp_path / "none.json"):
        pass
    assert not (tmp_path / "none.json").exists()


def test_crops(tmp_path):
    whole = followed(7, None, MASK, rectangle((0, 0, 0, 0), (90, 120)))
    with Crops(tmp_path / "a" / "crops") as out:
        out.write(whole)
    (path,) = (tmp_path / "a" / "crops").rglob("*.*")
    assert path == tmp_path / "a" / "crops" / "1" / "000007.png"
    crop = np.asarray(Image.open(path))
    assert np.array_equal(crop[:, :, :3], whole.frame[20:60, 10:40, ::-1])
    assert (crop[:, :, 3] == 255).all()
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot be made"):
        Crops(tmp_path / "file")


def test_windows_need_objects():
    with pytest.raises(InvalidInputError, match="give both"):
        CliRunner().invoke(app, ["stream", "a.avi", "--box", "0,0,9,9", "--follow"], catch_exceptions=False)


def test_windows_are_of_frames_without_padding_but_for_drift(monkeypatch):
    asked = []

    def load(*args, **options):
        asked.append(options["pad"])
        raise InvalidInputError("enough")

    monkeypatch.setattr("groupmix_sam.live.sources.Frames", lambda source: None)
    monkeypatch.setattr(Predictor, "from_pretrained", load)
    for mode in ([], ["--fixed-camera"], ["--track", "--follow"], ["--fixed-camera", "--drift", "weights"]):
        with pytest.raises(InvalidInputError, match="enough"):
            CliRunner().invoke(app, ["stream", "a.avi", "--box", "0,0,9,9", *mode], catch_exceptions=False)
    assert asked == [True, False, False, True]


def test_all_outputs_of_a_tracked_video(tmp_path, monkeypatch):
    """`stream --track` on a drawn video: the files agree with each other."""
    monkeypatch.setattr(Predictor, "from_pretrained", lambda *args, **options: ColourPredictor())
    video = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    for i in range(4):
        video.write(scene((RED, (20 + 3 * i, 40, 50 + 3 * i, 70)), seed=i)[:, :, ::-1])
    video.release()
    arguments = ["stream", str(tmp_path / "a.avi"), "--track", "--box", "20,40,50,70", "--masks", str(tmp_path / "m.jsonl")]
    arguments += ["--coco", str(tmp_path / "c.json"), "--crops", str(tmp_path / "crops")]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    records = [json.loads(line)["objects"][0] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    (annotation,) = json.loads((tmp_path / "c.json").read_text())["annotations"]
    assert annotation["segmentations"] == [record["mask"] for record in records]
    assert len(records) == 4
    crops = sorted((tmp_path / "crops" / "0").iterdir())
    assert [(np.asarray(Image.open(crop))[:, :, 3] > 0).sum() for crop in crops] == annotation["areas"]
