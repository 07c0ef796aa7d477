"""Measure following an object in a video: frames a second, and whether encoding parts of frames gives the same masks.

    python benchmarks/live.py line.mp4 --box 282,108,342,312 --skip 160 --checkpoint fast --checkpoint exported/ --threads 2
    python benchmarks/live.py line.mp4 --box 282,108,342,312 --skip 160 --checkpoint fast --davis DAVIS

Three trackers see each frame by turns: one that encodes it in full, one that encodes what moved, and one that encodes around
the object. Their times are thus those of the same moments of a busy machine. Then the first frame is shown with noise alone,
and then frames that change everywhere. With --davis, J and F of the tracker and of both baselines follow, from each first
frame's mask. Times are by the clock, from a frame to its mask: reading and drawing are left out.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray

from groupmix_sam.evaluate.video import FOLLOWERS, VideoDataset, evaluate_video, video_table
from groupmix_sam.inference import Predictor
from groupmix_sam.live import Frames, PartialPredictor, Tracker
from groupmix_sam.masks import mask_iou
from groupmix_sam.weights import is_exported

Image = NDArray[np.uint8]
MODES = ("all", "what moved", "around the object")
# Frames that are not timed at first: models warm up, and windows are compiled.
WARM = 10
NOISE = 2.0


def read(source: str, skip: int, count: int) -> list[Image]:
    """Return frames, RGB."""
    frames = Frames(source)
    found = []
    for frame in frames:
        if frame.number >= skip:
            found.append(np.ascontiguousarray(frame.image[:, :, ::-1]))
        if len(found) == count:
            break
    frames.close()
    return found


def noisy(frame: Image, count: int) -> Iterator[Image]:
    """Yield a frame as a camera's noise changes it."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield np.clip(frame + generator.normal(0, NOISE, frame.shape), 0, 255).astype(np.uint8)


def shaken(frame: Image, count: int) -> Iterator[Image]:
    """Yield a frame as a camera sees it that is bumped all the time."""
    for i in range(count):
        yield np.roll(frame, (6 * (i % 2), 9 * (i % 3)), (0, 1))


def load(checkpoint: str, threads: int) -> Predictor:
    if is_exported(checkpoint):
        return Predictor.from_pretrained(checkpoint, threads=threads)
    torch.set_num_threads(threads)
    return Predictor.from_pretrained(checkpoint)


def measure(checkpoint: str, threads: int, frames: list[Image], box: list[float]) -> list[str]:
    """Return the rows of the table of one model."""
    model = load(checkpoint, threads).model
    partial = {
        "what moved": PartialPredictor(Predictor(model)),
        "around the object": PartialPredictor(Predictor(model), follow=True),
    }
    trackers = {mode: Tracker(partial.get(mode, Predictor(model))) for mode in MODES}
    for tracker in trackers.values():
        tracker.start(frames[0], boxes=[box])
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    shares: dict[str, list[float]] = {mode: [] for mode in partial}
    ious: dict[str, list[float]] = {mode: [] for mode in partial}
    for number, frame in enumerate(frames[1:]):
        found = {}
        for mode, tracker in trackers.items():
            start = perf_counter()
            (found[mode],) = tracker.update(frame)
            if number >= WARM:
                seconds[mode].append(perf_counter() - start)
        for mode in partial:
            shares[mode].append(partial[mode].share)
            masks = [np.zeros(frame.shape[:2], bool) if found[m].mask is None else found[m].mask for m in ("all", mode)]
            ious[mode].append(mask_iou(*masks))
    rows = [f"| frames/s, every frame encoded in full | | {1 / np.mean(seconds['all']):.1f} |"]
    for mode in partial:
        rows += [
            f"| frames/s, {mode} | 25 | {1 / np.mean(seconds[mode]):.1f} |",
            f"| share of the pixels encoded, {mode} | | {np.mean(shares[mode]):.2f} |",
            f"| IoU with full encoding, {mode}: mean, least | 0.95 | {np.mean(ious[mode]):.3f}, {np.min(ious[mode]):.3f} |",
        ]
    still = Tracker(PartialPredictor(Predictor(model)))
    still.start(frames[0], boxes=[box])
    rows.append(f"| frames/s while nothing moves | 100 | {1 / np.mean(times(still, noisy(frames[0], 60))):.1f} |")
    both = Tracker(Predictor(model)), Tracker(PartialPredictor(Predictor(model)))
    ratio = []
    for tracker in both:
        tracker.start(frames[0], boxes=[box])
    for frame in shaken(frames[0], 40):
        full, part = (times(tracker, iter([frame]))[0] for tracker in both)
        ratio.append(part / full)
    rows.append(f"| time over full encoding where everything moves | 1.05 | {np.median(ratio[WARM:]):.2f} |")
    return rows


def times(tracker: Tracker, frames: Iterator[Image]) -> list[float]:
    found = []
    for frame in frames:
        start = perf_counter()
        tracker.update(frame)
        found.append(perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="of a fixed camera")
    parser.add_argument("--box", required=True, help="x0,y0,x1,y1 of the object in the first frame that counts")
    parser.add_argument("--skip", type=int, default=0, help="frames before that")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--checkpoint", action="append", help="weights or an exported folder; may be given again")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--davis", type=Path, help="a folder like DAVIS")
    args = parser.parse_args()
    box = [float(side) for side in args.box.split(",")]
    frames = read(args.video, args.skip, args.frames)
    print(f"{describe()}\n{len(frames)} frames of {frames[0].shape[1]} x {frames[0].shape[0]}, {args.threads} threads")
    for checkpoint in args.checkpoint or ["fast"]:
        print(f"\n{checkpoint}\n\n| | target | measured |\n|---|---|---|")
        print("\n".join(measure(checkpoint, args.threads, frames, box)), flush=True)
        if args.davis is not None:
            data = VideoDataset(args.davis)
            print("\n" + video_table(list(evaluate_video(load(checkpoint, args.threads), data, list(FOLLOWERS)))), flush=True)


if __name__ == "__main__":
    main()
