from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from groupmix_sam.demo import Demo, Session, clip
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
