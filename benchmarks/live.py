"""Measure following objects in videos: speed, masks of partial encoding, identity switches, lost and found, DAVIS.

    python benchmarks/live.py LINE DAVIS --checkpoint fast --checkpoint onnx_int8/ --checkpoint openvino_int8/ --threads 2
    python benchmarks/live.py LINE DAVIS --parts davis --sequence dog --checkpoint openvino_int8/

LINE is a folder with the three videos of fixed cameras in `VIDEOS`, of intel-iot-devkit/sample-videos; DAVIS has the layout of
DAVIS 2016. The made videos need neither: a part of examples/coffee.jpg (CC0) at 1280 x 720, over which a cup moves that is cut
out of it. Parts can run one by one: each replaces what benchmarks/results/live.json has of it, and what is there is printed.

Three trackers see each frame by turns: one that encodes it in full, one that encodes what moved, and one that encodes around
the object. Their times are thus those of the same moments of a busy machine. Times are by the clock, from a frame to its mask:
reading and drawing are left out.
"""

import argparse
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from machine import header
from numpy.typing import NDArray
from report import EVENTS, LIVE, RESULTS, RUNTIMES

from groupmix_sam.evaluate.video import FOLLOWERS, STARTS, VideoDataset, evaluate_video
from groupmix_sam.images import read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.exported_folder import read_config
from groupmix_sam.live import Frames, MaskFile, PartialPredictor, Tracker, track
from groupmix_sam.masks import mask_iou
from groupmix_sam.memory import keep_freed_memory
from groupmix_sam.prompts import Prompt
from groupmix_sam.weights import is_exported

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
PHOTO = Path(__file__).parents[1] / "examples" / "coffee.jpg"
# The rows of the photo that are 16:9, as the frames that exports may have been made for.
WIDE = slice(5, 342)
MODES = ("all", "what moved", "around the object")
# Frames of the timed video.
FRAMES = 150
# Frames that are not timed at first: models warm up.
WARM = 10
NOISE = 2.0
# Seconds between refreshes, on a clock that three trackers share.
REFRESH = 3 * 10.0
# Frames of an hour, and how many times each of the video's is shown.
HOUR, STANDS = 90_000, 100


class Video(NamedTuple):
    """A video with the boxes of its objects in the first frame that counts, and the frame from which on none is there.

    Every `step`-th frame counts. The timed object is the one of `timed`.
    """

    first: int
    step: int
    boxes: list[list[int]]
    gone: int | None


VIDEOS = {
    "bottle-detection.mp4": Video(160, 3, [[55, 106, 122, 314], [282, 108, 342, 312], [506, 106, 573, 316]], None),
    "one-by-one-person-detection.mp4": Video(84, 2, [[385, 10, 510, 392]], 204),
    "bolt-multi-size-detection.gif": Video(5, 1, [[48, 16, 116, 250]], 24),
}
TIMED, TIMED_BOX = "bottle-detection.mp4", 1


def read(path: Path, first: int, step: int = 1, count: int | None = None) -> Iterator[tuple[int, Image]]:
    """Yield frames, RGB, with their numbers."""
    frames, found = Frames(str(path)), 0
    try:
        for frame in frames:
            if frame.number >= first and (frame.number - first) % step == 0:
                yield frame.number, np.ascontiguousarray(frame.image[:, :, ::-1])
                found += 1
                if found == count:
                    return
    finally:
        frames.close()


def load(checkpoint: str, threads: int) -> tuple[str, Predictor]:
    """Return a model's name in the tables, and the model."""
    torch.set_num_threads(threads)
    if not is_exported(checkpoint):
        keep_freed_memory()  # as `stream` does
        return f"{RUNTIMES['torch']} fp32", Predictor.from_pretrained(checkpoint, pad=False)
    config = read_config(Path(checkpoint))
    return f"{RUNTIMES[config['runtime']]} {config['precision']}", Predictor.from_pretrained(checkpoint, threads=threads)


# ---- made videos ----


class Made(NamedTuple):
    """A frame of a made video, and where the cup is seen in it."""

    image: Image
    truth: Mask


def cut_out(predictor: Predictor) -> tuple[Image, NDArray[np.float32]]:
    """Return the photo's cup, 150 pixels wide and blue, so that it is not taken for the one behind it, and its alpha."""
    photo = read_image(PHOTO)[WIDE]
    predictor.set_image(photo)
    masks, _, _ = predictor.predict(box=np.array([170, 11, 420, 307]), multimask_output=False)
    rows, columns = (np.flatnonzero(masks[0].any(axis)) for axis in (1, 0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    size = 150, round(150 * len(rows) / len(columns))
    cup = cv2.resize(photo[part][:, :, ::-1], size, interpolation=cv2.INTER_AREA)
    return cup, cv2.resize(masks[0][part].astype(np.float32), size, interpolation=cv2.INTER_AREA)


def made(cup: Image, alpha: NDArray[np.float32], event: str, count: int) -> Iterator[Made]:
    """Yield the frames of a made video: the cup moves over the photo, and an event happens half-way.

    The camera's noise is in all frames. The cup rests in those of "nothing moves".
    """
    still = cv2.resize(read_image(PHOTO)[WIDE], (1280, 720), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, NOISE, (7, *still.shape)).astype(np.float32)
    height, width = alpha.shape
    speed, top = 15 if event == "hidden" else 30, still.shape[0] - height - 30
    for i in range(count):
        x, y = (60, top) if event == "nothing moves" else (60 + speed * i, top + round(20 * np.sin(i / 8)))
        frame, truth = still.astype(np.float32), np.zeros(still.shape[:2], bool)
        frame[y : y + height, x : x + width] += alpha[..., None] * (cup - frame[y : y + height, x : x + width])
        truth[y : y + height, x : x + width] = alpha > 0.5
        if event == "hidden":  # by a post, 100 pixels wider than the cup
            frame[:, 400:650] = 170
            truth[:, 400:650] = False
        if event == "flicker":
            frame *= 1 + 0.01 * (-1) ** i
        if event == "a light goes on" and i >= count // 2:
            frame = frame * 1.1 + 25
        if event == "a bumped camera" and i >= count // 2:
            frame, truth = (np.roll(array, (7, -12), (0, 1)) for array in (frame, truth))
        if event == "everything moves":
            frame, truth = (np.roll(array, (6 * (i % 2), 9 * (i % 3)), (0, 1)) for array in (frame, truth))
        yield Made(np.clip(frame + noise[i % len(noise)], 0, 255).astype(np.uint8), truth)


# ---- what is measured ----


def by_turns(
    predictor: Predictor, frames: Iterator[Image], prompts: dict[str, Any], truths: Sequence[Mask] = ()
) -> dict[str, Any]:
    """Return what three trackers of one model did on the same frames: frames/s, share encoded, IoU with full encoding.

    With the truth of each frame but the first, also the IoU of each tracker with it.
    """
    model = predictor.model
    partial = {
        "what moved": PartialPredictor(Predictor(model), refresh=REFRESH),
        "around the object": PartialPredictor(Predictor(model), follow=True, refresh=REFRESH),
    }
    trackers = {mode: Tracker(partial.get(mode, Predictor(model))) for mode in MODES}
    first = next(frames)
    for tracker in trackers.values():
        tracker.start(first, **prompts)
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    shares: dict[str, list[float]] = {mode: [] for mode in partial}
    ious: dict[str, list[float]] = {mode: [] for mode in partial}
    right: dict[str, list[float]] = {mode: [] for mode in MODES}
    empty = np.zeros(first.shape[:2], bool)
    for number, frame in enumerate(frames):
        found = {}
        for mode, tracker in trackers.items():
            start = perf_counter()
            (item,) = tracker.update(frame)
            seconds[mode].append(perf_counter() - start)
            found[mode] = empty if item.mask is None else item.mask
            if truths:
                right[mode].append(mask_iou(found[mode], truths[number]))
        for mode in partial:
            shares[mode].append(partial[mode].share)
            ious[mode].append(mask_iou(found["all"], found[mode]))
    spent = {mode: np.array(values[WARM:] or values) for mode, values in seconds.items()}
    return {
        "frames": len(seconds["all"]),
        "rate": {mode: interval_of(values, lambda v: 1 / v.mean(-1)) for mode, values in spent.items()},
        "ratio": {mode: interval_of(spent[mode] / spent["all"], lambda v: np.median(v, -1)) for mode in partial},
        "share": {mode: float(np.mean(shares[mode])) for mode in partial},
        "iou": {mode: [float(np.mean(ious[mode])), float(np.min(ious[mode]))] for mode in partial},
        "truth": {mode: [float(np.mean(values)), float(np.min(values))] for mode, values in right.items() if truths},
    }


def interval_of(values: NDArray[Any], statistic: Callable[[NDArray[Any]], Any]) -> list[float]:
    """Return a statistic over frames and its 95 % bootstrap interval."""
    drawn = statistic(np.random.default_rng(0).choice(values, (2000, len(values))))
    return [float(statistic(values)), *map(float, np.quantile(drawn, (0.025, 0.975)))]


def speed(args: argparse.Namespace, name: str, predictor: Predictor) -> list[dict[str, Any]]:
    """Follow the middle bottle while hands take others away."""
    video = VIDEOS[TIMED]
    frames = (frame for _, frame in read(args.line / TIMED, video.first, 1, args.frames))
    return [{"model": name, **by_turns(predictor, frames, {"boxes": [video.boxes[TIMED_BOX]]})}]


def events(args: argparse.Namespace, name: str, predictor: Predictor) -> list[dict[str, Any]]:
    """Follow the cup of the made videos."""
    cup, alpha = cut_out(predictor)
    rows = []
    for event in EVENTS:
        first, *frames = made(cup, alpha, event, min(args.frames, 30))
        images = iter([first.image, *(frame.image for frame in frames)])
        truths = [frame.truth for frame in frames]
        rows.append({"model": name, "event": event, **by_turns(predictor, images, {"masks": [first.truth]}, truths)})
    return rows


def hidden(args: argparse.Namespace, name: str, predictor: Predictor) -> list[dict[str, Any]]:
    """Count frames until the hidden cup is lost, and until it is found after a third of it is seen again."""
    cup, alpha = cut_out(predictor)
    first, *frames = made(cup, alpha, "hidden", 60)
    tracker = Tracker(predictor)
    tracker.start(first.image, masks=[first.truth])
    seen = [frame.truth.sum() / first.truth.sum() for frame in frames]
    states, ious = [], []
    for frame in frames:
        (item,) = tracker.update(frame.image)
        states.append(item.state)
        if item.mask is not None and frame.truth.any():
            ious.append(mask_iou(item.mask, frame.truth))
    gone = seen.index(0)
    back = next(i for i in range(gone, len(seen)) if seen[i] > 1 / 3)
    lost = next((i for i in range(len(states)) if states[i] == "lost"), None)
    found = states.index("found") if "found" in states else None
    row = {
        "model": name,
        "lost_after": None if lost is None else lost - gone,
        "found_after": None if found is None else found - back,
        "iou": float(np.mean(ious)),
    }
    return [row]


def switches(args: argparse.Namespace, name: str, predictor: Predictor) -> list[dict[str, Any]]:
    """Count the objects that are taken for another: that move to another's place, or are found when they are gone."""
    rows = []
    for file, video in VIDEOS.items():
        tracker = Tracker(PartialPredictor(Predictor(predictor.model)))
        frames = read(args.line / file, video.first, video.step, args.frames if args.frames < FRAMES else None)
        _, first = next(frames)
        tracker.start(first, boxes=video.boxes)
        places = [item.mask for item in tracker.update(first)]
        wrong = dict.fromkeys(range(len(places)), False)
        count = lost = events = 0
        for number, frame in frames:
            count += 1
            for i, item in enumerate(tracker.update(frame)):
                lost += item.mask is None
                others = [place for j, place in enumerate(places) if j != i]
                now = item.mask is not None and (
                    (video.gone is not None and number >= video.gone) or any(mask_iou(item.mask, p) > 0.5 for p in others)
                )
                events += now and not wrong[i]
                wrong[i] = now
        rows.append({"model": name, "video": file, "frames": count, "objects": len(places), "lost": lost, "switches": events})
    return rows


def davis(args: argparse.Namespace, name: str, predictor: Predictor) -> list[dict[str, Any]]:
    """Score the tracker and both baselines by DAVIS's J and F."""
    rows = []
    for start in args.start or STARTS:
        for score in evaluate_video(predictor, VideoDataset(args.davis, args.sequence), list(FOLLOWERS), start):
            print(f"{start} {score.sequence} {score.follower}: J {score.j:.3f}, F {score.f:.3f}", file=sys.stderr, flush=True)
            rows.append({"model": name, "start": start, **score.__dict__})
    return rows


class Loop:
    """A capture of the timed video, over and over; each frame stands for a while, as on a line that waits."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._frames: Iterator[tuple[int, Image]] = iter(())
        self._frame: Image | None = None
        self._left = count

    def read(self) -> tuple[bool, Image | None]:
        if self._left == 0:
            return False, None
        if self._left % STANDS == 0:
            found = next(self._frames, None)
            if found is None:
                self._frames = read(self._path, *VIDEOS[TIMED][:2])
                found = next(self._frames)
            self._frame = np.ascontiguousarray(found[1][:, :, ::-1])
        self._left -= 1
        return True, self._frame

    def isOpened(self) -> bool:  # noqa: N802  OpenCV's name
        return True

    def get(self, key: int) -> float:
        return 0.0

    def release(self) -> None:
        pass


def hour(args: argparse.Namespace, name: str, predictor: Predictor) -> list[dict[str, Any]]:
    """Follow three bottles through 90 000 frames, an hour at 25 frames/s, and write down the process's memory."""
    count = HOUR if args.frames >= FRAMES else 10 * args.frames
    frames = Frames("loop.mp4", open_capture=lambda source: Loop(args.line / TIMED, count))
    prompts = [Prompt(box=[float(side) for side in box]) for box in VIDEOS[TIMED].boxes]
    start = perf_counter()
    memory: dict[int, int] = {}
    with TemporaryDirectory(dir="/dev/shm") as folder, MaskFile(Path(folder) / "masks.jsonl") as masks:
        for result in track(Tracker(PartialPredictor(predictor)), frames, prompts):
            masks.write(result)
            if (result.number + 1) % (count // 9) == 0:
                memory[result.number + 1] = held_mb()
                print(f"{result.number + 1} frames: {memory[result.number + 1]} MB", file=sys.stderr, flush=True)
    return [{"model": name, "frames": count, "seconds": perf_counter() - start, "memory_mb": memory}]


def held_mb() -> int:
    """Return the memory that this process holds; Linux only."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) // 1024


PARTS = {"speed": speed, "events": events, "switches": switches, "hidden": hidden, "davis": davis, "hour": hour}
# Those in which models do not differ but by rounding: the last checkpoint stands for all.
BY_ONE = ("switches", "hidden", "davis", "hour")
PROTOCOL = {
    "speed": f"Three trackers of a model see each frame by turns: {FRAMES} frames of {TIMED}, 640 x 360, from frame "
    f"{VIDEOS[TIMED].first} on, one bottle by its box. Frames/s are from a frame to its mask, without reading and drawing. The "
    f"first {WARM} frames are not timed. A refresh is due after {REFRESH:g} s of all three. Intervals are 95 %, by bootstrap "
    "over frames. Nothing moves, and everything moves, in made videos of 1280 x 720. Ratios of times are medians over frames.",
    "events": f"30 frames of 1280 x 720 a video, noise of {NOISE:g} levels, the cup by its mask in the first frame. "
    "The truth is the mask that was drawn.",
    "switches": "Objects by their boxes, and what moved is encoded. Every third frame of the bottles counts, and every second "
    "one of the people.",
    "hidden": "60 frames of 1280 x 720; the cup passes behind a post.",
    "davis": "The first frame's mask, its box, or a click on its innermost pixel. The first and the last frame do not count.",
    "hour": f"{HOUR} frames of {TIMED}, 640 x 360, three bottles, with the file of masks.",
}
# What tells a row of DAVIS from the others, which are kept where a sequence is measured anew.
KEYS = ("model", "start", "sequence", "object", "follower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("line", type=Path, help="the folder of the three videos")
    parser.add_argument("davis", type=Path, help="a folder like DAVIS 2016")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS)[:-1], help="all but hour")
    parser.add_argument("--checkpoint", action="append", help="weights or an exported folder; may be given again")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each video; fewer to try the script")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", action="append", choices=STARTS, help="of davis; all by default")
    parser.add_argument("--sequence", action="append", help="of davis; all by default")
    parser.add_argument("--results", type=Path, default=RESULTS / "live.json")
    args = parser.parse_args()
    warnings.simplefilter("always")  # an audit that fails says so
    checkpoints = args.checkpoint or ["fast"]
    kept = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else {}
    shown = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    for part in args.parts:
        rows = []
        for checkpoint in checkpoints[-1:] if part in BY_ONE else checkpoints:
            rows += PARTS[part](args, *load(checkpoint, args.threads))
        if part == "davis":
            new = {tuple(row[key] for key in KEYS) for row in rows}
            rows += [row for row in kept.get(part, {}).get("rows", []) if tuple(row[key] for key in KEYS) not in new]
            rows.sort(key=lambda row: (STARTS.index(row["start"]), row["sequence"], list(FOLLOWERS).index(row["follower"])))
        kept[part] = {
            **header(shlex.join(["python", "benchmarks/live.py", *shown])),
            "protocol": PROTOCOL[part],
            "rows": rows,
        }
        args.results.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for name, (write, needed) in LIVE.items():
        if needed <= kept.keys():
            print(f"\n{name}\n\n{write(kept)}", flush=True)


if __name__ == "__main__":
    main()
