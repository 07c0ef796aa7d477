import asyncio
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from groupmix_sam.demo import Answer, Demo, Session, clip
from groupmix_sam.live import Result, TrackedObject

FRAMES = 3


@pytest.mark.parametrize("seconds", [-1.0, float("inf")], ids=["each frame", "the last frame"])
def test_no_frame_is_shown_twice(tmp_path, monkeypatch, seconds):
    frame, mask = np.zeros((32, 32, 3), np.uint8), np.eye(32, dtype=bool)
    item = TrackedObject(1, mask, None, 0.5, "tracked")
    results = [Result(i, i / 10, frame, mask[None], np.array([0.5], np.float32), 0.1, [item]) for i in range(FRAMES)]
    path = tmp_path / "clip.webm"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), 10, (32, 32))
    video.write(frame)
    video.release()
    monkeypatch.setattr(clip, "Tracker", lambda predictor: SimpleNamespace(start=lambda image, masks: None))
    monkeypatch.setattr(clip, "track", lambda tracker, frames: iter(results))
    monkeypatch.setattr(clip, "SHOW_EVERY", seconds)
    demo, session = Demo({"ours": lambda: None}), replace(Session.of(frame), model="ours")
    shown = list(clip.Clip(path).follow(demo, session, mask, False, tmp_path))
    numbers = [int(step.text.split(":")[0].removeprefix("Frame ")) for step in shown]
    first = 1 if seconds < 0 else FRAMES
    assert numbers == list(range(first, FRAMES + 1))
    assert len((tmp_path / "masks.jsonl").read_text().splitlines()) == FRAMES


def test_another_clip_takes_the_place_of_one_that_is_followed(tmp_path, monkeypatch):
    """Of the first clip nothing is shown any more, and clicks on its later frames change nothing."""
    gr = pytest.importorskip("gradio", reason="the page needs groupmix-sam[demo]")
    from groupmix_sam.demo.page import build

    frame, mask = np.zeros((32, 32, 3), np.uint8), np.eye(32, dtype=bool)
    item = TrackedObject(1, mask, None, 0.5, "tracked")
    results = (Result(i, i / 10, frame, mask[None], np.array([0.5], np.float32), 0.1, [item]) for i in count())
    path = tmp_path / "clip.webm"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), 10, (32, 32))
    video.write(frame)
    video.release()
    monkeypatch.setattr(clip, "Tracker", lambda predictor: SimpleNamespace(start=lambda image, masks: None))
    monkeypatch.setattr(clip, "track", lambda tracker, frames: results)
    monkeypatch.setattr(clip, "SHOW_EVERY", -1.0)
    answer = Answer(np.stack([mask] * 3), np.array([0.5, 0.4, 0.3], np.float32), 0.1)
    session = replace(Session.of(frame), model="ours", answers={"ours": answer})
    predictor = SimpleNamespace(set_image=lambda image: None)

    async def built():  # else gradio makes event loops that nobody closes
        return build(Demo({"ours": lambda: predictor}))

    handlers = {handler.name: handler for handler in asyncio.run(built()).fns.values()}
    assert not any(block.stateful for block in handlers["on_follow"].outputs), "they would bring the first clip back"
    first = clip.Clip(path)
    shown = handlers["on_follow"].fn(session, first, False)
    assert next(shown)[1].startswith("Frame 1: ")
    clicked = handlers["on_click"].fn(session, first, "foreground", "ours", SimpleNamespace(index=(3, 4)))
    assert all(value == gr.skip() for value in clicked)
    opened, second, *_ = handlers["on_open"].fn({"path": str(path)}, first, "ours")
    assert (opened.clicks, second is first) == ((), False)
    assert list(shown) == []
    assert not first.followed
