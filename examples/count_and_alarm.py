"""Count parts that cross a line, and raise an alarm while a hand is in a zone.

    pip install 'groupmix-sam[stream]'
    python examples/count_and_alarm.py line.mp4 --part 100,80,160,140 --line 320,0,320,360
    python examples/count_and_alarm.py line.mp4 --hand 20,200,90,280 --zone 200,150,400,150,400,300,200,300

Boxes are those of the parts and the hands in the first frame. Each event is a line of JSON: a part that crossed, with the
count so far; or a hand that entered or left the zone, with the pixels of its mask inside. A part crosses where the middle of
its mask changes sides; it may be hidden meanwhile. A hand that is lost in the zone counts as in it until it is seen outside.
In place of `print` an event may go to a relay, a database or a broker.

This is no safety function: a machine's guard needs certified hardware.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from groupmix_sam.inference import Predictor
from groupmix_sam.live import Frames, Result, TrackedObject, Tracker, track
from groupmix_sam.masks import fill_polygons
from groupmix_sam.prompts import Prompt

# Pixels of a hand in the zone that are taken for the edge of its mask.
TOLERATED = 20


def side_of(line: Sequence[float], item: TrackedObject) -> bool:
    """Return on which side of a line, x0, y0, x1, y1, the middle of an object's mask is."""
    rows, columns = np.nonzero(item.mask)
    x0, y0, x1, y1 = line
    return bool((x1 - x0) * (rows.mean() - y0) > (y1 - y0) * (columns.mean() - x0))


def events(
    results: Iterator[Result], parts: set[int], line: Sequence[float] | None, zone: Sequence[Sequence[float]] | None
) -> Iterator[dict[str, Any]]:
    """Yield what happens.

    Args:
        results: Of `track`.
        parts: The ids of the parts; all others are hands.
        line: x0, y0, x1, y1 in pixels.
        zone: The corners of a polygon, x, y each.
    """
    count, sides, inside = 0, dict[int, bool](), dict[int, bool]()
    area = None
    for result in results:
        if zone is not None and area is None:
            area = fill_polygons([[zone]], result.frame.shape[:2])
        for item in result.objects or ():
            if item.mask is None:
                continue
            if item.id in parts and line is not None:
                side = side_of(line, item)
                if sides.get(item.id, side) != side:
                    count += 1
                    yield {"frame": result.number, "part": item.id, "count": count}
                sides[item.id] = side
            elif item.id not in parts and area is not None:
                pixels = int(np.count_nonzero(item.mask & area))
                if (pixels > TOLERATED) != inside.get(item.id, False):
                    inside[item.id] = pixels > TOLERATED
                    yield {"frame": result.number, "hand": item.id, "in_zone": inside[item.id], "pixels": pixels}


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(arguments: list[str] | None = None, act: Callable[[str], object] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a video file, a camera's index or a URL")
    parser.add_argument("--part", type=numbers, action="append", default=[], help="x0,y0,x1,y1 of a part; may be given again")
    parser.add_argument("--hand", type=numbers, action="append", default=[], help="the same of a hand")
    parser.add_argument("--line", type=numbers, help="x0,y0,x1,y1: parts that cross it are counted")
    parser.add_argument("--zone", type=numbers, help="x,y,x,y,... of a polygon: hands in it are told of")
    parser.add_argument("--checkpoint", default="fast", help="weights, or a folder that `groupmix-sam export` wrote")
    args = parser.parse_args(arguments)

    prompts = [Prompt(box=box) for box in args.part + args.hand]
    zone = None if args.zone is None else np.reshape(args.zone, (-1, 2)).tolist()
    results = track(Tracker(Predictor.from_pretrained(args.checkpoint)), Frames(args.source), prompts)
    for event in events(results, set(range(len(args.part))), args.line, zone):
        act(json.dumps(event))


if __name__ == "__main__":
    main()
